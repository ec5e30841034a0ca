"""Guided backpropagation (Springenberg et al., ICLR workshop 2015) and guided Grad-CAM (Selvaraju et al., 2017)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from common.errors import UserError
from evaluate.explainers.grad_cam import grad_cam
from evaluate.explainers.input_gradient import batched_gradient, reduce_colours
from evaluate.explainers.query import Query

_RELU = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_CLIPPED = {F.relu6, F.hardtanh, F.hardtanh_}


class _GuidedClip(torch.autograd.Function):
    """min(max(u, 0), top) whose gradient passes where the input lies inside and the gradient is positive."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, top: float) -> Tensor:
        """Clip."""
        ctx.save_for_backward((u > 0) & (u < top))
        return u.clamp(0, top)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """1[0 < u < top] 1[g > 0] g."""
        (inside,) = ctx.saved_tensors
        return gradient.relu() * inside, None


class GuidedReLU(TorchFunctionMode):
    """Within it, every ReLU and ReLU6 - module or function, in place or not - passes positive gradients only.

    du = 1[u > 0] 1[dv > 0] dv; for ReLU6 also 0 where it clips, as its own derivative is. Nothing in the model
    is replaced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take the guided form of a ReLU, leave everything else."""
        kwargs = kwargs or {}
        top = None
        if func in _RELU:
            top = torch.inf
        elif func in _CLIPPED:
            low = kwargs.get("min_val", args[1] if len(args) > 1 and func is not F.relu6 else 0)
            high = kwargs.get("max_val", args[2] if len(args) > 2 else 6)
            top = float(high) if func is F.relu6 or low == 0 else None
        if top is None:
            return func(*args, **kwargs)
        self.seen += 1
        return _GuidedClip.apply(args[0] if args else kwargs["input"], top)


def _guided_gradient(query: Query) -> Tensor:
    _ = query.targets  # predicted before the mode is entered
    with GuidedReLU() as mode:
        gradient = batched_gradient(query)
    if mode.seen == 0:
        raise UserError(
            f"{type(query.bare).__name__} has no ReLU, by which guided backpropagation is defined; take input_gradient"
        )
    return gradient


def guided_backprop(query: Query, reduce: str = "max_abs") -> Tensor:
    """The image gradient with negative gradients dropped at every ReLU.

    Returns:
        (B, H, W) at the image's resolution.

    Raises:
        UserError: the network has no ReLU.
    """
    return reduce_colours(_guided_gradient(query), reduce)


def guided_grad_cam(query: Query, reduce: str = "max_abs") -> Tensor:
    """Guided backpropagation times the upsampled Grad-CAM map, element by element.

    Returns:
        (B, H, W) at the image's resolution.

    Raises:
        UserError: the network has no ReLU.
    """
    coarse = query.upsample(grad_cam(query.features, query.gradients))
    return reduce_colours(_guided_gradient(query) * coarse[:, None], reduce)
