"""Losses against timm's, the repulsive term's epoch, and the watch for losses that are not finite."""

import pytest
import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from common.errors import UserError
from common.models.zoo import create_model
from common.surgery import repulsive_loss
from train.configure import load_settings
from train.data.augment import BatchMixing
from train.losses.classification import classification_loss, correct, first_not_finite
from train.losses.repulsion import Repulsion
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


def test_repulsion_begins_with_its_epoch() -> None:
    model = create_model("demo_dcls")
    repulsion = Repulsion(model, PositionSettings(repulsion=True, repulsion_from_epoch=21))
    assert repulsion(20) is None
    term = repulsion(21)
    assert term is not None and torch.equal(term, repulsive_loss(model) ** 2) and term.requires_grad
    assert Repulsion(model, PositionSettings(repulsion=False))(99) is None
    with pytest.raises(UserError, match="no DCLS layers"):
        Repulsion(create_model("demo"), PositionSettings(repulsion=True))


def test_the_first_loss_that_is_not_finite_is_remembered() -> None:
    seen = torch.tensor(-1)
    for update, loss in enumerate([1.0, float("inf"), float("nan"), 2.0]):
        seen = first_not_finite(seen, torch.tensor(loss), update)
    assert seen == 1
