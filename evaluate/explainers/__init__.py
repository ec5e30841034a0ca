"""Explainers: from a feature map and its gradient to a saliency map. One module each, found by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from evaluate.explainers.grad_cam import grad_cam
from evaluate.explainers.threshold_grad_cam import threshold_grad_cam

Explainer = Callable[[Tensor, Tensor], Tensor]
"""(features (B, C, h, w), gradients (B, C, h, w)) -> saliency (B, h, w) at the feature map's resolution."""

EXPLAINERS: dict[str, Explainer] = {
    "grad_cam": grad_cam,
    "threshold_grad_cam": threshold_grad_cam,
}
"""Every explainer by the name people type."""
