"""Losses against timm's, the objective against its sum written out, and the watch for losses that are not finite."""

import pytest
import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from common.errors import UserError
from common.models.zoo import create_model
from common.surgery import position_groups, repulsive_loss
from train.configure import load_settings
from train.data.augment import BatchMixing
from train.losses.classification import classification_loss, correct, first_not_finite
from train.losses.objective import Objective
from train.losses.repulsion import Repulsion
from train.losses.terms import Forward, Term
from train.meters import METERS, by_name, count, new_meters
from train.settings import LossSettings, PositionSettings

logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
labels = torch.arange(6)


def test_cross_entropy_is_timms() -> None:
    settings = load_settings(["recipe=demo", "loss.smoothing=0.1"])
    images = torch.zeros(6, 3, 8, 8)
    _, targets = BatchMixing(settings, 9, 0)(images, labels, 0, 0)
    ours = classification_loss(logits, targets, settings.loss)
    torch.testing.assert_close(ours, LabelSmoothingCrossEntropy(0.1)(logits, labels))
    torch.testing.assert_close(ours, SoftTargetCrossEntropy()(logits, targets))


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_bce_is_timms(threshold: float | None) -> None:
    targets = torch.rand(6, 9, generator=torch.Generator().manual_seed(1))
    ours = classification_loss(logits, targets, LossSettings("bce", bce_threshold=threshold))
    theirs = BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold)(logits, targets)
    torch.testing.assert_close(ours, theirs)


def test_correct_counts_the_largest_target() -> None:
    targets = torch.eye(9)[[0, 1, 2, 3, 4, 5]] * 0.7 + 0.01
    assert correct(torch.eye(9)[[0, 1, 2, 5, 5, 5]], targets) == 4


def seen_in(epoch: int, model: nn.Module) -> Forward:
    nothing = torch.zeros(0)
    return Forward(model, nothing, nothing, nothing, epoch)


def test_repulsion_begins_with_its_epoch() -> None:
    model = create_model("demo_dcls")
    repulsion = Repulsion(model, PositionSettings(repulsion=True, repulsion_from_epoch=21))
    assert repulsion(seen_in(20, model)) is None
    term = repulsion(seen_in(21, model))
    assert term is not None and torch.equal(term, repulsive_loss(model) ** 2) and term.requires_grad
    assert Repulsion(model, PositionSettings(repulsion=False)).weight == 0
    with pytest.raises(UserError, match="no DCLS layers"):
        Repulsion(create_model("demo"), PositionSettings(repulsion=True))


class MeanLogit(Term):
    """A term of the images."""

    weight = 0.5

    def __call__(self, seen: Forward) -> Tensor:
        return seen.logits.mean()


def repelled(model: nn.Module, micro_batches: int) -> Objective:
    given = ["recipe=demo_dcls", "positions.repulsion=true", "positions.repulsion_from_epoch=3"]
    return Objective(model, load_settings(given), micro_batches)


def test_the_gradient_of_an_update_is_that_of_its_images_mean_loss_and_of_one_repulsion() -> None:
    torch.manual_seed(0)
    model = create_model("demo_dcls", 9).eval()  # BatchNorm would see the batch as a whole
    images, targets = torch.randn(6, 3, 32, 32), torch.eye(9)[:6]
    objective = repelled(model, 3)
    objective.terms["mean"] = MeanLogit()
    for part in range(3):
        here = slice(2 * part, 2 * part + 2)
        objective(model, images[here], targets[here], 3, part == 2).total.backward()
    parts = [p.grad for p in model.parameters()]
    model.zero_grad()
    made = model(images)
    (torch.nn.functional.cross_entropy(made, targets) + 0.5 * made.mean() + repulsive_loss(model) ** 2).backward()
    for ours, parameter in zip(parts, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)
    with torch.no_grad():
        assert "repulsion" not in objective(model, images, targets, 2, True).counted  # the epoch before its first


def test_meters_give_back_each_terms_mean_by_its_name() -> None:
    model = create_model("demo_dcls", 9).eval()
    images, targets = torch.randn(4, 3, 32, 32), torch.eye(9)[:4]
    objective, meters = repelled(model, 2), new_meters(torch.device("cpu"))
    with torch.no_grad():
        for here in (slice(0, 1), slice(1, 4)):  # of different sizes, so that images are weighed and not batches
            count(meters, objective(model, images[here], targets[here], 3, here.start == 1).counted)
        count(meters, {"updates": torch.tensor(1.0)})
        made, repulsion = model(images), (repulsive_loss(model) ** 2).item()
    sums = by_name(meters)
    loss = torch.nn.functional.cross_entropy(made, targets).item()
    assert (sums["images"], sums["correct"]) == (4, (made.argmax(1) == torch.arange(4)).sum().item())
    assert objective.means(sums) == pytest.approx({"loss": loss, "repulsion": repulsion, "total": loss + repulsion})
    plain = Objective(model, load_settings(["recipe=demo_dcls"]), 2)
    assert plain.means(sums).keys() == {"loss"}
    assert METERS.index("repulsion") == 1  # snapshots keep the sums in this order


def test_a_term_that_is_not_finite_makes_the_whole_not_finite() -> None:
    model = create_model("demo_dcls", 9)
    objective = repelled(model, 1)
    group = position_groups(model)[0]
    with torch.no_grad():
        group.positions.fill_(float("nan"))
        total = objective(nn.Flatten(), torch.zeros(2, 9), torch.eye(9)[:2], 3, True).total
    assert total.isnan()


def test_the_first_loss_that_is_not_finite_is_remembered() -> None:
    seen = torch.tensor(-1)
    for update, loss in enumerate([1.0, float("inf"), float("nan"), 2.0]):
        seen = first_not_finite(seen, torch.tensor(loss), update)
    assert seen == 1
