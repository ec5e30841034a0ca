"""Guided backpropagation (Springenberg et al., ICLR workshop 2015) and guided Grad-CAM (Selvaraju et al., 2017)."""

from __future__ import annotations

from torch import Tensor

from common.errors import UserError
from common.guided_relu import GuidedReLU
from evaluate.explainers.explainer import SUM, Explainer
from evaluate.explainers.grad_cam import grad_cam
from evaluate.explainers.input_gradient import batched_gradient, reduce_colours
from evaluate.network.query import Query


def _guided_gradient(query: Query) -> Tensor:
    _ = query.targets  # predicted before the mode is entered
    modes: list[GuidedReLU] = []

    def guided() -> GuidedReLU:
        modes.append(GuidedReLU())
        return modes[-1]

    gradient = batched_gradient(query, guided)
    passed = modes[-1].passed  # every slice goes through the same functions
    if not passed["relu"]:
        raise UserError(
            f"{type(query.bare).__name__} has no ReLU, by which guided backpropagation is defined; take input_gradient"
        )
    others = [f"{name} ({count})" for name, count in passed.most_common() if name != "relu"]
    if others:
        query.notes.append(
            f"here ReLUs are {passed['relu']} of {passed.total()} activation functions, "
            f"the plain gradient passes {', '.join(others)}"
        )
    return gradient


def guided_backprop(query: Query, reduce: str = "max_abs") -> Tensor:
    """The image gradient with negative gradients dropped at every ReLU.

    The rule says nothing of other activation functions: the gradient passes through them unchanged, and where most are
    others, the map is the plain gradient under another name (FastViT: 31 GELU and one ReLU, correlation 1.000).
    `query.notes` then says how many there are. Equal to captum and pytorch-grad-cam on networks of ReLU; captum ignores
    ReLU6.

    Returns:
        (B, H, W) at the image's resolution.

    Raises:
        UserError: no ReLU lies between image and score.
    """
    return reduce_colours(_guided_gradient(query), reduce)


def guided_grad_cam(query: Query, reduce: str = "max_abs") -> Tensor:
    """Guided backpropagation times the upsampled Grad-CAM map, element by element; see `guided_backprop`.

    Returns:
        (B, H, W) at the image's resolution.

    Raises:
        UserError: no ReLU lies between image and score.
    """
    coarse = query.upsample(grad_cam(query.features, query.gradients))
    return reduce_colours(_guided_gradient(query) * coarse[:, None], reduce)


_NEEDS = "needs a network of ReLUs"
ENTRIES = (
    Explainer("guided_backprop", guided_backprop, "image gradient", SUM, at_layer=False, note=_NEEDS),
    Explainer("guided_grad_cam", guided_grad_cam, "image gradient", SUM, note=_NEEDS),
)
