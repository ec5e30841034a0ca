"""Pointing games: does the most salient pixel, or the saliency's mass, lie on the object?"""

from __future__ import annotations

import torch
from torch import Tensor

from evaluate.metrics.case import Case
from evaluate.metrics.measure import Measure


def pointing_game(case: Case, tolerance: float = 15.0) -> Tensor:
    """1 if the most salient pixel lies on the object or less than `tolerance` pixels from it, else 0.

    Zhang et al., IJCV 2018, as TorchRay's benchmark: masks or boxes, nearer than 15 pixels by default (in TorchRay
    on images whose shorter side is 224). TorchRay averages within each class first, then over classes.

    Returns:
        (B,) 0 or 1; NaN without an object in view and for a constant map. Of several maxima the first counts.
    """
    width = case.size[1]
    peak = case.resized.flatten(1).argmax(1)
    rows = torch.arange(case.size[0], device=peak.device)[:, None]
    columns = torch.arange(width, device=peak.device)[None, :]
    row, column = (peak // width)[:, None, None], (peak % width)[:, None, None]
    squared = (rows - row) ** 2 + (columns - column) ** 2
    hits = (((squared < tolerance**2) | (squared == 0)) & case.region).flatten(1).any(1)
    return _where_defined(case, hits.float())


def standard_pointing(case: Case) -> Tensor:
    """1 if a most salient pixel lies in any ground-truth box (Opti-CAM's SP, eq. B.6; Quantus' PointingGame).

    Returns:
        As `pointing_game`, but any of several maxima may hit; otherwise Fake-CAM, all of whose pixels but one are
        maxima, would not reach the 99.8 % of the paper's table.
    """
    peaks = case.resized == case.resized.amax((1, 2), keepdim=True)
    hits = (peaks & case.region).flatten(1).any(1)
    return _where_defined(case, hits.float())


def energy_pointing(case: Case) -> Tensor:
    """Share of the saliency's mass that lies on the object: sum over U of S / sum of S.

    Energy-based pointing game (Wang et al., Score-CAM, 2020); Opti-CAM's EP and precision P (eq. B.3); Quantus'
    RelevanceMassAccuracy of the same map. S is min-max scaled at the images' resolution.

    Returns:
        (B,) in 0..1, NaN without an object in view or for a constant map.
    """
    inside = (case.saliency * case.region).sum((1, 2))
    return _where_defined(case, inside / case.saliency.sum((1, 2)))


def _where_defined(case: Case, values: Tensor) -> Tensor:
    """NaN without an object in view, and for a constant map."""
    return values.where(case.region.flatten(1).any(1) & ~case.constant, torch.nan)


ENTRIES = (
    Measure("pointing_game", pointing_game, "higher", ("objects",)),
    Measure("energy_pointing", energy_pointing, "higher", ("objects",)),
    Measure("standard_pointing", standard_pointing, "higher", ("objects",)),
)
