"""How far DCLS positions have moved since the start of the run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.surgery import position_groups


def positions_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every distinct P, (2, Cout, Cin/g, k), by the name its first layer gives it."""
    return {group.name: group.positions.detach().cpu().clone() for group in position_groups(model)}


def displacements(initial: dict[str, Tensor], now: dict[str, Tensor]) -> dict[str, Tensor]:
    """Distance in pixels, (Cout, Cin/g, k), between two states of each group of positions."""
    return {name: torch.linalg.vector_norm(now[name] - initial[name], dim=0) for name in initial if name in now}


def mean_displacement(initial: dict[str, Tensor], now: dict[str, Tensor]) -> float | None:
    """Mean distance in pixels over all elements; None without DCLS layers."""
    moved = displacements(initial, now)
    return float(torch.cat([d.flatten() for d in moved.values()]).mean()) if moved else None
