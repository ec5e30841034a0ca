"""The classification loss, and what is counted beside it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from train.losses.terms import Forward, Term
from train.settings import LossSettings


def classification_loss(logits: Tensor, targets: Tensor, loss: LossSettings) -> Tensor:
    """Mean loss of a batch.

    Args:
        logits: (B, C).
        targets: (B, C), soft; mixing and label smoothing are in them already.
        loss: `cross_entropy`, or `bce` averaged over classes too, as timm does for the recipes of arXiv 2110.00476.
    """
    if loss.kind == "cross_entropy":
        return F.cross_entropy(logits, targets)
    if loss.bce_threshold is not None:
        targets = (targets > loss.bce_threshold).to(targets.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets)


class Classification(Term):
    """The classification loss as a term of the objective."""

    def __init__(self, loss: LossSettings) -> None:
        self.loss = loss

    def __call__(self, seen: Forward) -> Tensor:
        """Mean over the images of a micro-batch."""
        return classification_loss(seen.logits, seen.targets, self.loss)


def correct(logits: Tensor, targets: Tensor) -> Tensor:
    """How many images of a batch have their largest logit where the target is largest."""
    return (logits.argmax(1) == targets.argmax(1)).sum()


def first_not_finite(seen: Tensor, loss: Tensor, update: int) -> Tensor:
    """The first update with a loss that is not finite, or -1, kept on the device without waiting for it."""
    bad = ~torch.isfinite(loss)
    return torch.where((seen < 0) & bad, torch.full_like(seen, update), seen)
