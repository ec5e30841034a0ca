"""Average Drop, Increase and Gain: the class's probability when only what the map shows is left (eq. 13-15).

p is the softmax probability of the explained class for the image, o for the image times the map (min-max at the image's
resolution); the equations are Opti-CAM's. Drop and Increase: Chattopadhay et al., WACV 2018; Gain: Zhang et al., CVIU
248, 2024. Drop and Increase are both won by Fake-CAM, a map that hides one pixel: Drop is a magnitude and Increase a
count, so that a tiny gain counts like a large one. Gain is Drop's symmetric partner, and Fake-CAM gains nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evaluate.metrics.case import Case
from evaluate.metrics.measure import Measure
from evaluate.network.query import Substrate


def average_drop(case: Case, substrate: Substrate = "black") -> Tensor:
    """Percentage of the probability lost behind the map: 100 [p - o]_+ / p (eq. 13).

    Args:
        case: images, maps, targets.
        substrate: colour of hidden pixels; `black`: the mask multiplies the image before normalisation, as in
            the authors' code. `mean` masks the normalised tensor, as torchcam and ADCC do: on 6 photographs a drop of
            18.9 % where `black` gives 24.7 %. Never mix the two.

    Returns:
        (B,) in 0..100; the data set's score is the mean.
    """
    before, after = case.probabilities(case.targets), case.behind_map(substrate)
    return 100 * (before - after).relu() / before.clamp(min=torch.finfo(before.dtype).tiny)


def average_increase(case: Case, substrate: Substrate = "black") -> Tensor:
    """100 where the probability rises behind the map, else 0 (eq. 14); see `average_drop`."""
    before, after = case.probabilities(case.targets), case.behind_map(substrate)
    return 100 * (before < after).to(before.dtype)


def average_gain(case: Case, substrate: Substrate = "black") -> Tensor:
    """Percentage of the rise in probability that was possible: 100 [o - p]_+ / (1 - p) (eq. 15); see `average_drop`.

    An image with p = 1 in floating point cannot gain and scores 0.
    """
    before, after = case.probabilities(case.targets), case.behind_map(substrate)
    return torch.where(before < 1, 100 * (after - before).relu() / (1 - before).where(before < 1, 1), 0)


ENTRIES = (
    Measure("average_drop", average_drop, "lower"),
    Measure("average_increase", average_increase, "higher"),
    Measure("average_gain", average_gain, "higher"),
)
