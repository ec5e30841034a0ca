"""Does the map hold when the image changes a little, or when only what it shows is left?"""

from __future__ import annotations

import torch
from torch import Tensor

from evaluate.metrics.case import Case
from evaluate.metrics.measure import Measure
from evaluate.network.query import Substrate


def max_sensitivity(case: Case, radius: float = 0.2, samples: int = 10) -> Tensor:
    """max over samples of ||S(x + d) - S(x)|| / ||S(x)|| (Yeh et al., NeurIPS 2019, normalised).

    d uniform in -radius..radius in every value of the normalised image; maps as the explainer gives them. The
    paper takes a supremum, of which sampling gives a lower bound, and does not divide. Captum divides as here, and so
    does Quantus since 0.4.3; up to 0.4.1 it divided by ||x||. Figures of Quantus depend on its version.

    Returns:
        (B,); NaN for a map that is 0 everywhere.
    """
    generators = case.query.generators()
    before = case.maps.float().flatten(1)
    worst = torch.zeros(len(before), device=before.device)
    for _ in range(samples):
        drawn = torch.stack([torch.rand(case.images.shape[1:], generator=g) for g in generators])
        noise = drawn.to(case.images) * 2 - 1
        after = case.explain(case.query.model, case.images + radius * noise).flatten(1)
        worst = worst.maximum((after - before).norm(dim=1))
    size = before.norm(dim=1)
    return torch.where(size > 0, worst / size, torch.nan)


def coherency(case: Case, substrate: Substrate = "mean") -> Tensor:
    """(1 + Pearson correlation of S(x) and S(x masked by S(x))) / 2 (Poppi et al., CVPR workshops 2021).

    Maps min-max scaled at the images' resolution. 1 if what the map shows is explained by the same map.

    Args:
        case: images, maps and the explainer.
        substrate: colour of hidden pixels; `mean`, as the authors' code (aimagelab/ADCC) multiplies the normalised
            tensor. `black` is up to 0.039 away (correlation over images 0.983).

    Returns:
        (B,) in 0..1; NaN where either map is constant.
    """
    masked = case.query.mask(case.images, case.saliency, substrate)
    again = Case(case.query.model, case.images, case.explain(case.query.model, masked)).saliency
    first, second = (m.flatten(1) - m.flatten(1).mean(1, keepdim=True) for m in (case.saliency, again))
    return (1 + (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))) / 2


def complexity(case: Case) -> Tensor:
    """Mean of the map on 0..1, its L1 norm per pixel (Poppi et al., CVPR workshops 2021).

    Quantus' `Complexity` (Bhatt et al., IJCAI 2020) has the same name but is another metric: the entropy of the map.

    Returns:
        (B,) in 0..1, NaN for a constant map.
    """
    return case.saliency.mean((1, 2)).where(~case.constant, torch.nan)


ENTRIES = (
    Measure("complexity", complexity, "lower"),
    Measure("coherency", coherency, "higher", ("explain",)),
    Measure("max_sensitivity", max_sensitivity, "lower", ("explain",)),
)
