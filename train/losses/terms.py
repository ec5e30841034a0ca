"""What a term of the loss is: each is a file in this folder. It imports nothing else of `train`, so all may use it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class Forward:
    """A micro-batch and what the model made of it."""

    model: nn.Module
    """As Accelerate wrapped it."""
    images: Tensor
    """(B, 3, H, W), normalised."""
    targets: Tensor
    """(B, C), soft."""
    logits: Tensor
    """(B, C), with their graph."""
    epoch: int
    """Counted from 0."""


class Term(ABC):
    """A term of the loss. One that is added is a dataclass of its settings; its `weight` is 0 by default."""

    weight: float = 1.0
    """Factor of the term; 0 for none."""
    of_images: ClassVar[bool] = True
    """A mean over the images of a micro-batch; False: of the weights alone, computed once per update."""

    @abstractmethod
    def __call__(self, seen: Forward) -> Tensor | None:
        """A scalar with its graph, before `weight`; None where there is nothing to add."""
