"""Threshold-Grad-CAM (Chamas et al., arXiv 2408.03164), in the order of operations of its published code."""

import torch
from torch import Tensor

from evaluate.explainers.grad_cam import channel_weights


def threshold_grad_cam(features: Tensor, gradients: Tensor, threshold: float = 0.3) -> Tensor:
    """Mean over channels of the positive part of weight times activation, scaled to [0, 1], raised to a floor.

    The differences to Grad-CAM: the ReLU acts on each channel before the mean; the map is min-max normalised
    at its own resolution; values below the threshold are raised to it (a floor, they are not set to zero).

    Args:
        features: (B, C, h, w) activations of the target layer.
        gradients: (B, C, h, w) of the target's logit with respect to them.
        threshold: the floor, 0.3 in the study.

    Returns:
        (B, h, w) between `threshold` and 1. A map that is constant before normalisation (0/0 in the published
        code, which then turns the whole score into NaN) becomes the constant `threshold`.
    """
    positive = (channel_weights(gradients) * features).relu().mean(1)
    low, high = positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)
    spread = high - low
    scaled = torch.where(spread > 0, (positive - low) / spread, 0)
    return scaled.clamp(min=threshold)
