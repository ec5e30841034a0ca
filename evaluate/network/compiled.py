"""A network compiled by `torch.compile`, for the many forward passes of an evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor import config as inductor

from common.compiling import compiler_failed


class CompiledModel(nn.Module):
    """A classifier in evaluation mode whose `forward` and `forward_features` are compiled.

    Make it once the model is on its device. On a CPU the weights become constants of the programs, so that batch norms
    merge into convolutions; a later change of the weights has no effect. A model compiled earlier is compiled anew when
    it is used again.

    Args:
        model: the classifier; `forward_features` is needed only where it is called.

    Raises:
        UserError: when called, where nothing compiles.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        torch.compiler.reset()  # programs of other models count towards torch's recompile limit
        self._orig_mod = model  # the name that torch.compile gives it, see `evaluate.network.passes.uncompiled`
        known: Any = model
        constant = all(parameter.device.type == "cpu" for parameter in model.parameters())
        self._whole = _Programs(lambda images: known(images), constant)
        self._features = _Programs(lambda images: known.forward_features(images), constant)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of normalised images (B, 3, H, W); as written where gradients are recorded."""
        logits: Tensor = self._orig_mod(images) if torch.is_grad_enabled() else self._whole(images)
        return logits

    def forward_features(self, images: Tensor) -> Tensor:
        """The last feature map of normalised images (B, 3, H, W)."""
        return self._features(images)


class _Programs:
    """A function of a batch, compiled for each batch size that it meets.

    A batch more than half as large as one seen before is padded to that size, which takes less time than compiling.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], constant: bool) -> None:
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no GPU
        self.program, self.constant = torch.compile(function, dynamic=False), constant
        self.sizes: set[int] = set()

    def __call__(self, images: Tensor) -> Tensor:
        count = len(images)
        size = min((size for size in self.sizes if count <= size < 2 * count), default=count)
        self.sizes.add(size)
        filled = torch.cat([images, images[-1:].expand(size - count, -1, -1, -1)])
        try:
            with inductor.patch(freezing=self.constant):  # as an option of torch.compile it comes too late
                return self.program(filled.contiguous(memory_format=torch.channels_last))[:count]
        except BackendCompilerFailed as error:
            raise compiler_failed(error, "leave out --compile") from error
