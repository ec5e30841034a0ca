"""What must hold of a model's parameters after each update; each layer knows it of its own."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Constrained(Protocol):
    """A module whose parameters an optimiser may move to where they must not be."""

    constrained: tuple[str, ...]
    """Names of those parameters."""

    def constrain(self) -> None:
        """Bring them back, in place."""


def constrain(model: nn.Module) -> None:
    """Let every module that has a constraint restore it, once for parameters that several share.

    To be called after each update.
    """
    done: set[tuple[int, ...]] = set()
    for module in model.modules():
        if isinstance(module, Constrained):
            parameters = tuple(id(getattr(module, name)) for name in module.constrained)
            if parameters not in done:
                done.add(parameters)
                module.constrain()
