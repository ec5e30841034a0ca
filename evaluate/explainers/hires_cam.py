"""HiResCAM (Draelos and Carin, arXiv 2011.08891): gradient times activation, element by element."""

from torch import Tensor

from evaluate.explainers.explainer import SIGNED, Explainer


def hires_cam(features: Tensor, gradients: Tensor, relu: bool = True) -> Tensor:
    """ReLU(sum over channels of g A, element by element).

    Where the head is affine, the signed map sums to the score minus its bias.

    Args:
        features: A, (B, C, h, w).
        gradients: g, (B, C, h, w).
        relu: drop negative evidence, as pytorch-grad-cam does; False: the signed map, which the authors' function
            (rachellea/hirescam) gives. Their demonstration drops negative evidence before it draws a map.

    Returns:
        (B, h, w), at least 0 with `relu`.
    """
    signed = (gradients * features).sum(1)
    return signed.relu() if relu else signed


ENTRIES = (Explainer("hires_cam", hires_cam, "gradient", SIGNED),)
