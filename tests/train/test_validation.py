"""Validation: every picture counts once, and the model sees batches of one shape."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from tests.train.conftest import make_photographs
from train.configure import load_settings
from train.data.augment import model_transform
from train.data.batch import Batch, SampleKey, to_input
from train.data.images import open_data
from train.data.loader import make_loader
from train.data.order import ValidationSampler
from train.validation import validate


class Watched(nn.Module):
    """A network with BatchNorm that remembers the shapes and strides of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(7))
        self.seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add((tuple(images.shape), images.stride()))
        return self.layers(images)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 9, 10, 64])  # of 9 pictures
def test_scores_of_a_count_that_does_not_divide_are_those_of_a_slow_loop(
    batch_size: int, channels_last: bool, tmp_path: Path
) -> None:
    make_photographs(tmp_path, each=12)
    given = ["recipe=convnext_t", f"data.root={tmp_path}", "data.val_fraction=0.25", "data.workers=0", "num_classes=7"]
    settings = load_settings([*given, "data.eval_size=32", f"channels_last={channels_last}"])
    _, source = open_data(settings)
    assert len(source) == 9
    transform, device = model_transform(settings), torch.device("cpu")
    model = Watched()
    model(torch.rand(2, 3, 32, 32))  # statistics of BatchNorm
    model.seen.clear()
    loader = make_loader(source, ValidationSampler(9, batch_size, 0, 1), settings, pin=False)
    found = validate({"raw": model}, loader, settings, transform, Accelerator(cpu=True))["raw"]
    assert len(model.seen) == 1 and {shape[0] for shape, _ in model.seen} == {min(batch_size, 9)}
    hits1 = hits5 = loss = 0.0
    model.eval()
    for index in range(9):
        one = source.__getitems__([SampleKey(0, index, 0)])
        assert isinstance(one, Batch)
        with torch.no_grad():
            logits = model(to_input(one, transform, device, False))[0]
        order = logits.argsort(descending=True).tolist()
        hits1 += order[0] == one.labels.item()
        hits5 += one.labels.item() in order[:5]
        loss += F.cross_entropy(logits[None], one.labels).item()
    assert (found.images, found.top1, found.top5) == (9, 100 * hits1 / 9, 100 * hits5 / 9)
    assert found.loss == pytest.approx(loss / 9, rel=1e-5)
