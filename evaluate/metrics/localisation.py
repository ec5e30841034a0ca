"""Weakly supervised localisation as Opti-CAM measures it (Zhang et al., CVIU 248, 2024, App. B).

The predicted box B_p surrounds the largest component of the map above its mean. The paper does not say which pixels
are neighbours; the co-authors' code (casme, in ftorres11/saliencysense) joins a pixel with the 4 beside, above and
below it, as here by default. `neighbours=8` adds the diagonal ones: the same boxes for smooth maps (60 of 60 Grad-CAM
maps), larger ones for grainy maps (40 of 40 input gradients: 0.62 of the image on average against 0.32).

Maps are min-max scaled at the images' resolution. Images without an object in view give NaN.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from evaluate.maps.boxes import largest_component_box, overlap
from evaluate.metrics.case import Case
from evaluate.metrics.measure import Measure
from evaluate.metrics.pointing import energy_pointing


def predicted_boxes(case: Case, neighbours: int) -> Tensor:
    """(B, 4) B_p of each image, x0, y0, x1, y1; all 0 for a constant map."""
    if neighbours not in (4, 8):
        raise UserError(f"neighbours {neighbours}; take 4 or 8")
    above = (case.saliency > case.saliency.mean((1, 2), keepdim=True)).cpu().numpy()
    boxes = [largest_component_box(m, neighbours) for m in above]
    return torch.tensor(boxes, dtype=torch.float32, device=case.images.device)


def _best_overlap(case: Case, neighbours: int) -> Tensor:
    best = [
        overlap(box, objects).amax() if len(objects) else box.new_tensor(torch.nan)
        for box, objects in zip(predicted_boxes(case, neighbours), case.objects())
    ]
    return torch.stack(best)


def localisation_error(case: Case, neighbours: int = 4) -> Tensor:
    """LE = 1 - max_B IoU(B, B_p) (eq. B.2).

    As in the equation. The co-authors' code (casme) counts the images whose IoU is above 0.5 instead: 11.6 points
    away with MobileNetV2.

    Args:
        case: images, maps, boxes.
        neighbours: of a pixel in B_p, 4 or 8, see the module.

    Returns:
        (B,) in 0..1.

    Raises:
        UserError: another number of neighbours.
    """
    return 1 - _best_overlap(case, neighbours)


def official_metric(case: Case, neighbours: int = 4) -> Tensor:
    """OM = 1 - max_B IoU(B, B_p) 1[predicted class = label] (eq. B.1); (B,) in 0..1. See `localisation_error`."""
    return 1 - _best_overlap(case, neighbours) * (case.predicted == case.labels)


def pixel_f1(case: Case) -> Tensor:
    """F1 = 2 P R / (P + R), P = sum_U S / sum S, R = sum_U S / |U| over the union U of the boxes (eq. B.3, B.4).

    As in the equations. The co-authors' code (casme) takes the single box that gives the best F1 instead of the
    union, and does not cut |U| to the view.

    Returns:
        (B,) in 0..1.
    """
    precision = energy_pointing(case)
    recall = (case.saliency * case.region).sum((1, 2)) / case.region.sum((1, 2))
    total = precision + recall
    return torch.where(total > 0, 2 * precision * recall / total, total)


def box_accuracy(case: Case, thresholds: int = 100, overlaps: tuple[float, ...] = (0.3, 0.5, 0.7)) -> Tensor:
    """BoxAcc (Choe et al., CVPR 2020; eq. B.5): whether the box of {S > eta} overlaps an object by delta.

    The data set's score is the mean over images, then the maximum over eta, then the mean over delta. The box is
    that of the largest component, as in Opti-CAM and MaxBoxAcc; MaxBoxAccV2 takes the best of all components. Diagonal
    pixels are neighbours, as in the contours of the authors' code (clovaai/wsolevaluation). That code rounds maps to
    8 bits and boxes to whole pixels, which changes 0.5 % of the hits; on 60 photographs its MaxBoxAcc was 0, 0 and
    1.7 points away (delta 0.3, 0.5, 0.7).

    Args:
        case: images, maps, boxes.
        thresholds: number of eta, at equal steps in 0..1, including 0 but not 1.
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
        boxes = torch.tensor([largest_component_box(saliency > eta, 8) for eta in steps], dtype=torch.float32)
        best = torch.stack([overlap(box, objects.cpu()).amax() for box in boxes])
        out.append((best[:, None] >= torch.tensor(overlaps)).float())
    return torch.stack(out)


def box_accuracy_of(hits: Tensor) -> float:
    """BoxAcc of a data set from (N, eta, delta)."""
    return hits.nanmean(0).amax(0).mean().item()


def saliency_metric(case: Case, of: str = "crop", neighbours: int = 4) -> Tensor:
    """SM = log max(0.05, |B_p| / (h w)) - log p_c (eq. B.7; Dabkowski and Gal, NeurIPS 2017).

    The crop is resized bilinearly; the co-authors' code (casme) does so cubically, at most 0.57 away on an image.

    Args:
        case: images, maps, targets.
        of: what p_c is the probability of; `crop`: B_p cut out and resized to the input, as Dabkowski and Gal
            define it; `image`: the whole image, which Opti-CAM's wording allows, but its Table A.7 does not: every
            explainer would be below Fake-CAM, whose box is the frame.
        neighbours: of a pixel in B_p, 4 or 8, see the module.

    Returns:
        (B,), unbounded; NaN for a constant map, whose empty box would win.

    Raises:
        UserError: `of` or the number of neighbours is none of these.
    """
    if of not in ("crop", "image"):
        raise UserError(f"of {of!r}; take crop or image")
    height, width = case.size
    boxes = predicted_boxes(case, neighbours)
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


ENTRIES = (
    Measure("official_metric", official_metric, "lower", ("boxes",)),
    Measure("localisation_error", localisation_error, "lower", ("boxes",)),
    Measure("pixel_f1", pixel_f1, "higher", ("objects",)),
    Measure(
        "box_accuracy",
        box_accuracy,
        "higher",
        ("boxes",),
        lambda hits: hits.amax(1).mean(1),
        of_detail=lambda hits, settings: box_accuracy_of(hits.view(len(hits), -1, len(settings["overlaps"]))),
        has_curve=True,
    ),
    Measure("saliency_metric", saliency_metric, "lower"),
)
