"""Grad-CAM (Selvaraju et al., ICCV 2017) as the study computes it."""

from torch import Tensor

from evaluate.explainers.explainer import SIGNED, Explainer


def channel_weights(gradients: Tensor) -> Tensor:
    """Spatial mean of the gradient, the weight of each channel: (B, C, h, w) -> (B, C, 1, 1)."""
    return gradients.mean((2, 3), keepdim=True)


def grad_cam(features: Tensor, gradients: Tensor, relu: bool = True) -> Tensor:
    """ReLU of the mean over channels of weight times activation; not normalised.

    The paper, captum and other libraries sum over channels: their values are C times these. Ranks do not change.

    Args:
        features: (B, C, h, w) activations of the target layer.
        gradients: (B, C, h, w) of the target's logit with respect to them.
        relu: drop negative evidence; False: the signed map.

    Returns:
        (B, h, w), at least 0 with `relu`.
    """
    signed = (channel_weights(gradients) * features).mean(1)
    return signed.relu() if relu else signed


ENTRIES = (Explainer("grad_cam", grad_cam, "gradient", SIGNED),)
