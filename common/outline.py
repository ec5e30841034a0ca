"""A model without memory: built on the meta device, where tensors have only shapes, and within limits.

So what a stranger's checkpoint asks for can be compared with its weight file before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from common.errors import UserError, first_line

MOST_TENSORS = 10_000
"""Parameters and buffers; the largest model of timm 1.0.31 has some thousands."""


_FILLING = {"normal_", "uniform_", "clamp_", "erfinv_", "mul_", "add_", "fill_", "zero_", "copy_"}


class _WithoutValues(TorchFunctionMode):
    """Leaves out what gives tensors of the meta device their initial values, most of the time it takes to build."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _FILLING or getattr(func, "__module__", "") == "torch.nn.init":
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


class _TooLarge(UserError):
    pass


def outline(build: Callable[[], nn.Module], most_bytes: int, where: str) -> nn.Module:
    """Build a model on the meta device.

    Args:
        build: makes it.
        most_bytes: what its parameters and buffers, those later replaced included, may take together.
        where: what describes the model, for the message.

    Returns:
        The model; its tensors have no values.

    Raises:
        UserError: it cannot be built, or is larger than allowed; then building stops at once.
    """
    tensors = total = 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> Any:
        nonlocal tensors, total
        if tensor is not None:
            tensors, total = tensors + 1, total + tensor.numel() * tensor.element_size()
        if tensors > MOST_TENSORS or total > most_bytes:
            raise _TooLarge(
                f"{where} describes a model of more than {MOST_TENSORS:,} tensors or {most_bytes / 2**30:.1f} GiB, too "
                "large for its weight file. Get the checkpoint again from where it was published"
            )
        if type(tensor) is nn.Parameter and not tensor.is_meta:  # as `torch.Tensor(...)` makes it, whatever the device
            return nn.Parameter(tensor.to("meta"))
        return None

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        with torch.device("meta"), _WithoutValues():
            return build()
    except _TooLarge:
        raise
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:
        raise UserError(
            f"{where} describes a model that cannot be built ({type(error).__name__}: {first_line(error)})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
