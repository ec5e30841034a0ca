"""Weakly supervised localisation as Opti-CAM measures it (Zhang et al., CVIU 248, 2024, App. B).

The predicted box B_p surrounds the largest component of the map above its mean (8-connected; the paper does not
say). Maps are min-max scaled at the images' resolution. Images without an object in view give NaN.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from evaluate.metrics.boxes import largest_component_box, overlap
from evaluate.metrics.case import Case
from evaluate.metrics.pointing import energy_pointing


def predicted_boxes(case: Case) -> Tensor:
    """(B, 4) B_p of each image, x0, y0, x1, y1; all 0 for a constant map."""
    above = (case.saliency > case.saliency.mean((1, 2), keepdim=True)).cpu().numpy()
    return torch.tensor([largest_component_box(m) for m in above], dtype=torch.float32, device=case.images.device)


def _best_overlap(case: Case) -> Tensor:
    best = [
        overlap(box, objects).amax() if len(objects) else box.new_tensor(torch.nan)
        for box, objects in zip(predicted_boxes(case), case.objects())
    ]
    return torch.stack(best)


def localisation_error(case: Case) -> Tensor:
    """LE = 1 - max_B IoU(B, B_p) (eq. B.2); (B,) in 0..1."""
    return 1 - _best_overlap(case)


def official_metric(case: Case) -> Tensor:
    """OM = 1 - max_B IoU(B, B_p) 1[predicted class = label] (eq. B.1); (B,) in 0..1."""
    return 1 - _best_overlap(case) * (case.predicted == case.labels)


def pixel_f1(case: Case) -> Tensor:
    """F1 = 2 P R / (P + R), P = sum_U S / sum S, R = sum_U S / |U| over the union U of the boxes (eq. B.3, B.4)."""
    precision = energy_pointing(case)
    recall = (case.saliency * case.region).sum((1, 2)) / case.region.sum((1, 2))
    total = precision + recall
    return torch.where(total > 0, 2 * precision * recall / total, total)


def box_accuracy(case: Case, thresholds: int = 100, overlaps: tuple[float, ...] = (0.3, 0.5, 0.7)) -> Tensor:
    """BoxAcc (Choe et al., CVPR 2020; eq. B.5): whether the box of {S > eta} overlaps an object by delta.

    The data set's score is the mean over images, then the maximum over eta, then the mean over delta. The box is
    that of the largest component, as in Opti-CAM and MaxBoxAcc; MaxBoxAccV2 takes the best of all components.

    Args:
        case: images, maps, boxes.
        thresholds: so many eta at equal steps in 0..1, 0 included, 1 not.
        overlaps: the deltas; those of MaxBoxAccV2.

    Returns:
        (B, eta, delta) 0 or 1.
    """
    steps, maps = np.arange(thresholds) / thresholds, case.saliency.cpu().numpy()
    out = []
    for saliency, objects in zip(maps, case.objects()):
        if len(objects) == 0:
            out.append(torch.full((thresholds, len(overlaps)), torch.nan))
            continue
        boxes = torch.tensor([largest_component_box(saliency > eta) for eta in steps], dtype=torch.float32)
        best = torch.stack([overlap(box, objects.cpu()).amax() for box in boxes])
        out.append((best[:, None] >= torch.tensor(overlaps)).float())
    return torch.stack(out)


def box_accuracy_of(hits: Tensor) -> float:
    """BoxAcc of a data set from (N, eta, delta)."""
    return hits.nanmean(0).amax(0).mean().item()


def saliency_metric(case: Case, of: str = "crop") -> Tensor:
    """SM = log max(0.05, |B_p| / (h w)) - log p_c (eq. B.7; Dabkowski and Gal, NeurIPS 2017).

    Args:
        case: images, maps, targets.
        of: what p_c is the probability of; `crop`: B_p cut out and resized to the input, as Dabkowski and Gal
            define it; `image`: the whole image, as Opti-CAM's wording can be read (but its Table A.7 cannot: every
            method would be below Fake-CAM, whose box is the frame).

    Returns:
        (B,), unbounded; NaN for a constant map, whose empty box would win.

    Raises:
        UserError: neither of the two.
    """
    if of not in ("crop", "image"):
        raise UserError(f"of {of!r}; take crop or image")
    height, width = case.size
    boxes = predicted_boxes(case)
    share = (boxes[:, 2:] - boxes[:, :2]).prod(1) / (height * width)

    def make(rows: Tensor) -> tuple[Tensor, Tensor]:
        cut = []
        for image, (x0, y0, x1, y1) in zip(case.images[rows], boxes[rows].int().tolist()):
            part = image[:, y0:y1, x0:x1] if x1 > x0 else image
            cut.append(F.interpolate(part[None], case.size, mode="bilinear", align_corners=False))
        return torch.cat(cut), rows

    if of == "crop":
        probability = case.perturbed(len(boxes), make, case.targets)
    else:
        probability = case.probabilities(case.targets)
    values = share.clamp(min=0.05).log() - probability.clamp(min=math.exp(-80)).log()
    return torch.where(share > 0, values, torch.nan)
