"""ReLU with the gradient of Guided Backpropagation (Springenberg et al., arXiv 1412.6806)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ACTIVATIONS = {
    "relu", "gelu", "silu", "mish", "sigmoid", "logsigmoid", "tanh", "softplus", "softsign", "hardswish", "hardsigmoid",
    "hardtanh", "threshold", "elu", "selu", "celu", "leaky_relu", "prelu", "rrelu",
}  # fmt: skip
"""Functions of torch by name, in-place forms without their underscore; `relu` stands for ReLU6 too."""


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
        return gradient.clamp(min=0) * inside, None


class GuidedReLU(TorchFunctionMode):
    """Within it, every ReLU and ReLU6 - module or function, in place or not - passes positive gradients only.

    du = 1[u > 0] 1[dv > 0] dv; for ReLU6 also 0 where it clips, as its own derivative is. Nothing in the model
    is replaced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passed: Counter[str] = Counter()
        """How many activation functions of each name the gradient came through: those between image and score."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take the guided form of a ReLU, leave everything else."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").rstrip("_")
        top = _top(name, args, kwargs)
        if top is None:
            out = func(*args, **kwargs)
        else:
            name, out = "relu", _GuidedClip.apply(args[0] if args else kwargs["input"], top)
        if name in _ACTIVATIONS and out.requires_grad:
            out.register_hook(lambda _gradient: self.passed.update([name]))
        return out


def _top(name: str, args: Any, kwargs: Any) -> float | None:
    """Where a call of this function clips, if it is a ReLU (never: infinity) or a ReLU6; None: it is neither."""
    if name == "relu":
        return torch.inf
    if name == "relu6":
        return 6.0
    if name == "hardtanh" and kwargs.get("min_val", args[1] if len(args) > 1 else -1) == 0:
        return float(kwargs.get("max_val", args[2] if len(args) > 2 else 1))
    return None
