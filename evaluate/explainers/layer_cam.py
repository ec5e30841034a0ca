"""LayerCAM (Jiang et al., IEEE TIP 2021): positive gradient times activation, element by element."""

from torch import Tensor

from evaluate.explainers.explainer import SIGNED, Explainer


def layer_cam(features: Tensor, gradients: Tensor, relu: bool = True) -> Tensor:
    """ReLU(sum over channels of ReLU(g) A, element by element).

    Args:
        features: A, (B, C, h, w).
        gradients: g, (B, C, h, w).
        relu: the outer ReLU, as in pytorch-grad-cam; the authors' code (PengtaoJiang/LayerCAM) has none. The two differ
            only where activations are negative.

    Returns:
        (B, h, w), at least 0 with `relu`.
    """
    signed = (gradients.relu() * features).sum(1)
    return signed.relu() if relu else signed


ENTRIES = (Explainer("layer_cam", layer_cam, "gradient", SIGNED),)
