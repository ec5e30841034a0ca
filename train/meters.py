"""Sums on the device since the last log point, by name."""

from __future__ import annotations

import torch
from torch import Tensor

from train.settings import LOSS_TERMS

METERS = ("loss", "repulsion", "correct", "images", "grad_norm", "steps", "updates", *LOSS_TERMS)
"""Names of the sums, in the order in which a snapshot keeps them."""


def new_meters(device: torch.device) -> Tensor:
    """A sum of 0 for each name."""
    return torch.zeros(len(METERS), device=device)


@torch.no_grad()
def count(meters: Tensor, values: dict[str, Tensor]) -> None:
    """Add scalars to the sums of their names, without waiting for the device."""
    unknown = values.keys() - set(METERS)
    assert not unknown, unknown
    meters += torch.stack([values[name] if name in values else torch.zeros_like(meters[0]) for name in METERS])


def by_name(meters: Tensor) -> dict[str, float]:
    """The sums; waits for the device."""
    return dict(zip(METERS, meters.tolist(), strict=True))
