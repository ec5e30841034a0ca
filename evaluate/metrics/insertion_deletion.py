"""Insertion and Deletion (RISE, Petsiuk et al., BMVC 2018): the probability as pixels come or go by saliency."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from common.errors import UserError
from evaluate.metrics.case import Case
from evaluate.metrics.measure import Measure
from evaluate.network.query import Substrate


def area(curve: Tensor) -> Tensor:
    """Area under curves (B, n) over an axis of length 1 by the trapezoid rule, as RISE's `auc`."""
    return (curve.sum(1) - curve[:, 0] / 2 - curve[:, -1] / 2) / (curve.shape[1] - 1)


@cache
def _kernel(size: int, sigma: float) -> np.ndarray:
    """RISE's `gkern`: a point, filtered within its own frame, whose reflections belong to the kernel."""
    point = np.zeros((size, size))
    point[size // 2, size // 2] = 1
    return gaussian_filter(point, sigma)


def blur(images: Tensor, size: int = 11, sigma: float = 5) -> Tensor:
    """Images (B, C, H, W) convolved with RISE's Gaussian kernel of `size` pixels, zero padding of half of it."""
    kernel = torch.as_tensor(_kernel(size, sigma), dtype=images.dtype, device=images.device)
    channels = images.shape[1]
    return F.conv2d(images, kernel.expand(channels, 1, size, size), padding=size // 2, groups=channels)


def _curve(case: Case, start: Tensor, finish: Tensor, step: int, of: str) -> Tensor:
    """Probability after each step from `start` to `finish`, most salient pixels first; (B, steps + 1).

    NaN for a constant map, which puts pixels in no order.
    """
    if step < 1:
        raise UserError(f"step of {step} pixels; take at least 1")
    if of not in ("predicted", "target"):
        raise UserError(f"of {of!r}; take predicted or target")
    batch, pixels = len(case.images), case.size[0] * case.size[1]
    order = case.resized.flatten(1).argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(1, order, torch.arange(pixels, device=order.device).expand(batch, -1))
    place = place.view(batch, 1, *case.size)
    states = -(-pixels // step) + 1

    def make(rows: Tensor) -> tuple[Tensor, Tensor]:
        index, done = rows // states, rows % states * step
        return torch.where(place[index] < done[:, None, None, None], finish[index], start[index]), index

    classes = case.predicted if of == "predicted" else case.targets
    curves = case.perturbed(batch * states, make, classes).view(batch, states)
    return curves.where(~case.constant[:, None], torch.nan)


def deletion(case: Case, step: int = 224, substrate: Substrate = "mean", of: str = "predicted") -> Tensor:
    """Curve of the probability while the most salient pixels are removed; its area is the score.

    Of equally salient pixels the first is removed first; RISE's code leaves their order to its sort, which changes the
    area by up to 4e-4 for maps with many zeros.

    Args:
        case: images and maps.
        step: pixels at a time; 224 in RISE's demonstration and in Opti-CAM, 224 * 8 in RISE's and CA-Stream's
            evaluation of a data set.
        substrate: what removed pixels become; `mean`: 0 in the normalised tensor, as RISE's code.
        of: class whose probability is read, `predicted` (RISE, Opti-CAM) or `target`.

    Returns:
        (B, ceil(H W / step) + 1) probabilities, NaN for a constant map.

    Raises:
        UserError: no such step, substrate or class.
    """
    return _curve(case, case.images, case.query.hidden(substrate).expand_as(case.images), step, of)


def insertion(
    case: Case, step: int = 224, blur_size: int = 11, blur_sigma: float = 5.0, of: str = "predicted"
) -> Tensor:
    """Curve of the probability while the most salient pixels replace a blurred image; its area is the score.

    Args:
        case: images and maps.
        step: see `deletion`.
        blur_size: side of the Gaussian kernel in pixels, odd; 11 in RISE, 5 in CA-Stream's code.
        blur_sigma: its standard deviation, 5 in both.
        of: see `deletion`.

    Returns:
        (B, ceil(H W / step) + 1) probabilities, NaN for a constant map.

    Raises:
        UserError: no such step or class, or an even kernel.
    """
    if blur_size % 2 == 0:
        raise UserError(f"blur_size {blur_size}; it must be odd")
    return _curve(case, blur(case.images, blur_size, blur_sigma), case.images, step, of)


_AXES = ("pixels (%), the most salient first", "probability")
ENTRIES = (
    Measure("insertion", insertion, "higher", per_image=area, has_curve=True, axes=_AXES),
    Measure("deletion", deletion, "lower", per_image=area, has_curve=True, axes=_AXES),
)
