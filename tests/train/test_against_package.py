"""Twenty updates of our training against a plain loop around the dcls package's own layer."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from DCLS.construct.modules import Dcls2d
from torch import Tensor, nn

from common.dcls import DclsConv2d
from common.models.zoo import create_model
from common.surgery import position_groups
from tests.train.conftest import metrics
from train.configure import dcls_spec, load_settings
from train.data.augment import model_transform
from train.data.batch import to_input
from train.data.images import open_data
from train.data.order import SampleOrder

UPDATES = 20
ARGUMENTS = [
    "recipe=demo_dcls",
    f"updates={UPDATES}",
    "batch_size=4",
    "global_batch=8",  # two micro-batches accumulate
    "data.train_images=24",
    "data.val_images=12",
    "data.workers=0",
    "data.image_size=32",
    "data.eval_size=32",
    "optim.name=adamw",
    "optim.lr=3e-2",
    "optim.args={eps: 1e-2, betas: [0.9, 0.99]}",  # so that rounding is not blown up where gradients are tiny
    "dcls.dilated_kernel_size=3",  # some positions meet the clamp
    "optim.weight_decay=0.05",
    "schedule.warmup_epochs=0",
    "epochs=1",
    "ema.decay=null",
    "publish_weights=raw",
    "positions.repulsion=true",
    "positions.repulsion_from_epoch=2",
    "log.every=1",
    "threads=1",
]


def repulsion(positions: list[Tensor]) -> Tensor:
    """L_rep of the DCLS ConvNeXt code, pair by pair."""
    terms = []
    for p in positions:
        _, out, per_group, count = p.shape
        total = p.new_zeros(())
        for i in range(count):
            for j in range(i):
                total = total + (1 - ((p[..., i] - p[..., j]) ** 2).sum(0).sqrt()).relu().sum()
        terms.append(2 * total / (count * (count - 1) * out * per_group))
    return torch.stack(terms).mean()


def package_twin(model: nn.Module) -> nn.Module:
    """Put the package's layer in the place of ours, with the same, shared, parameters."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, DclsConv2d):
            theirs = Dcls2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_count,
                stride=layer.stride,
                padding=layer.padding,
                dilated_kernel_size=layer.dilated_kernel_size,
                groups=layer.groups,
                bias=layer.bias is not None,
                version=layer.interpolation,
            )
            theirs.weight, theirs.P, theirs.bias = layer.weight, layer.P, layer.bias
            if layer.SIG is not None:
                theirs.SIG = layer.SIG
            theirs.DCK.SIG = theirs.SIG
            model.set_submodule(name, theirs)
    return model


def test_twenty_updates_equal_a_plain_loop(train_here: Any, tmp_path: Path) -> None:
    run = train_here(*ARGUMENTS, "snapshots.every_updates=20")
    ours = metrics(run, "train/loss")
    ours_repulsion = metrics(run, "train/repulsion")

    settings = load_settings(ARGUMENTS)
    source, _ = open_data(settings)
    order = SampleOrder(source, settings.seed)
    torch.manual_seed(settings.seed)
    model = create_model("demo_dcls", dcls=dcls_spec(settings)).to(memory_format=torch.channels_last)
    positions = [g.positions for g in position_groups(model)]
    sigmas = [g.sigma for g in position_groups(model) if g.sigma is not None]
    limit = position_groups(model)[0].layers[0][1].dilated_kernel_size[0] // 2
    model = package_twin(model)
    moving = {id(p) for p in [*positions, *sigmas]}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1 and id(p) not in moving], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        {"params": [*positions, *sigmas], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, **settings.optim.args)
    clamped = 0
    torch.set_num_threads(1)
    for update in range(UPDATES):
        lr = 3e-2 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * update / UPDATES)).item())
        for group, scale in zip(optimizer.param_groups, (1, 1, 5)):
            group["lr"] = lr * scale
        losses = []
        for micro in range(2):
            batch = source.__getitems__(order.keys(8 * update + 4 * micro, 8 * update + 4 * micro + 4))
            images = to_input(batch, model_transform(settings), torch.device("cpu"), True)
            loss = F.cross_entropy(model(images), batch.labels, label_smoothing=settings.loss.smoothing)
            (loss / 2).backward()
            losses.append(loss.item())
        epoch = 8 * update // 24
        if epoch >= 2:
            term = repulsion(positions) ** 2
            term.backward()
            assert ours_repulsion[update + 1] == pytest.approx(term.item(), rel=2e-2)
        else:
            assert ours_repulsion[update + 1] == 0.0
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for p in positions:
                clamped += int((p.abs() > limit).sum())
                p.clamp_(-limit, limit)
        assert ours[update + 1] == pytest.approx(sum(losses) / 2, rel=1e-3 if update < 5 else 2e-2), f"update {update}"
    assert clamped > 0, "the clamp was never needed: the test does not see it"
    state = torch.load(run / "snapshots" / "update_00000020" / "state.pt", weights_only=True)["model"]
    trained = {name: p for name, p in model.named_parameters() if id(p) in moving}
    for name, p in trained.items():
        difference = (state[name] - p).abs()
        # Without the clamp 0.013, without the repulsive loss 0.005, with it all 0.003 and less.
        assert difference.max() < 4e-3 and difference.mean() < 5e-4, f"{name}: {difference.max():.5f} px"
