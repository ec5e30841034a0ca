"""Agreement of a map with a human map: rank correlation, overlap of the top pixels, energy inside the human map.

Human maps are in the frame of the images; `evaluate.maps.frames` brings them there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError
from evaluate.maps import ranks
from evaluate.maps.arithmetic import dice_of, iou_of, min_max, top_share
from evaluate.metrics.case import Case
from evaluate.metrics.measure import Measure


def _human(case: Case) -> Tensor:
    if case.human is None:
        raise UserError("this metric needs human maps; the data set has none")
    return case.human.to(case.resized.device, torch.float32)


def spearman(case: Case) -> Tensor:
    """Spearman correlation of the map with the human map over all pixels.

    Returns:
        (B,) in -1..1, NaN where either map is constant.
    """
    return ranks.spearman(case.resized.flatten(1), _human(case).flatten(1))


def _tops(case: Case, percent: float) -> tuple[Tensor, Tensor]:
    return top_share(case.resized.flatten(1), percent), top_share(_human(case).flatten(1), percent)


def dice(case: Case, percent: float = 10.0) -> Tensor:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of both maps' top `percent` of pixels.

    As in Harmonization (Fel et al., NeurIPS 2022, evaluation/metrics.py): strictly above the percentile, so that
    a constant map has no top and scores 0.

    Returns:
        (B,) in 0..1.
    """
    return dice_of(*_tops(case, percent))


def iou(case: Case, percent: float = 10.0) -> Tensor:
    """Intersection over union |A and B| / |A or B| of both maps' top `percent` of pixels; see `dice`.

    Returns:
        (B,) in 0..1.
    """
    return iou_of(*_tops(case, percent))


def human_energy(case: Case) -> Tensor:
    """Energy inside the human map: sum(S H) / sum(S), both maps min-max scaled to 0..1.

    1 if all saliency lies where the human map is highest; for a binary human map it is the energy pointing game.

    Returns:
        (B,) in 0..1, NaN for a constant map.
    """
    return (case.saliency * min_max(_human(case))).sum((1, 2)) / case.saliency.sum((1, 2))


ENTRIES = (
    Measure("spearman", spearman, "higher", ("human",)),
    Measure("dice", dice, "higher", ("human",)),
    Measure("iou", iou, "higher", ("human",)),
    Measure("human_energy", human_energy, "higher", ("human",)),
)
