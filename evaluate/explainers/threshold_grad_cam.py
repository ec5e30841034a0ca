"""Threshold-Grad-CAM (Chamas et al., arXiv 2408.03164), in the order of operations of its published code."""

import torch
from torch import Tensor

from common.errors import UserError
from evaluate.explainers.explainer import Explainer
from evaluate.explainers.grad_cam import channel_weights


def threshold_grad_cam(
    features: Tensor,
    gradients: Tensor,
    threshold: float = 0.3,
    order: str = "relu_first",
    normalisation: str = "min_max",
) -> Tensor:
    """Mean over channels of the positive part of weight times activation, scaled to [0, 1] and raised to a floor.

    The differences from Grad-CAM: the ReLU acts on each channel before the mean; the map is min-max normalised
    at its own resolution; values below the threshold are raised to it (a floor; they are not set to zero).

    Args:
        features: (B, C, h, w) activations of the target layer.
        gradients: (B, C, h, w) of the target's logit with respect to them.
        threshold: the floor, 0.3 in the study.
        order: `relu_first` (the study), ReLU on each channel, then the mean; `mean_first`, as in Grad-CAM.
        normalisation: `min_max` (the study), `max` (divided by the maximum) or `none`.

    Returns:
        (B, h, w), with min-max between `threshold` and 1. A map that is constant before normalisation (0/0 in
        the published code, which then turns the whole score into NaN) becomes the constant `threshold`.

    Raises:
        UserError: unknown order or normalisation.
    """
    weighted = channel_weights(gradients) * features
    if order not in ("relu_first", "mean_first"):
        raise UserError(f"threshold_grad_cam: order {order!r}; take relu_first or mean_first")
    positive = weighted.relu().mean(1) if order == "relu_first" else weighted.mean(1).relu()
    low, high = positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)
    if normalisation == "min_max":
        spread = high - low
        scaled = torch.where(spread > 0, (positive - low) / spread, 0)
    elif normalisation == "max":
        scaled = torch.where(high > 0, positive / high, 0)
    elif normalisation == "none":
        scaled = positive
    else:
        raise UserError(f"threshold_grad_cam: normalisation {normalisation!r}; take min_max, max or none")
    return scaled.clamp(min=threshold)


ENTRIES = (
    Explainer(
        "threshold_grad_cam", threshold_grad_cam, "gradient", {"normalisation": "none", "threshold": float("-inf")}
    ),
)
