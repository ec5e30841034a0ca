"""XGrad-CAM (Fu et al., BMVC 2020): channels weighted by the activation-weighted mean of the gradient."""

from torch import Tensor

from evaluate.explainers.explainer import SIGNED, Explainer


def channel_weights(features: Tensor, gradients: Tensor, eps: float = 1e-6) -> Tensor:
    """Weight of each channel: sum(g A) / (sum(A) + eps) over positions, (B, C, 1, 1)."""
    return (gradients * features).sum((2, 3), keepdim=True) / (features.sum((2, 3), keepdim=True) + eps)


def xgrad_cam(features: Tensor, gradients: Tensor, eps: float = 1e-6, relu: bool = True) -> Tensor:
    """ReLU(sum over channels of weight times activation).

    Meant for activations of one sign: where a signed channel sums to nearly 0, its weight is arbitrary.

    Args:
        features: A, (B, C, h, w).
        gradients: g, (B, C, h, w).
        eps: 1e-6 as in the authors' code (Fu0511/XGrad-CAM); 1e-7 in pytorch-grad-cam.
        relu: drop negative evidence; False: the signed map.

    Returns:
        (B, h, w), at least 0 with `relu`.
    """
    signed = (channel_weights(features, gradients, eps) * features).sum(1)
    return signed.relu() if relu else signed


ENTRIES = (Explainer("xgrad_cam", xgrad_cam, "gradient", SIGNED),)
