"""Work in slices whose size halves whenever memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

DEFAULT_SIZE = {"cpu": 8, "cuda": 256}
"""Images at once: on a CPU larger slices only leave the cache, on a GPU they fill it."""


class MicroBatch:
    """How many images go through a network at once; shared by all perturbation explainers of a run.

    Args:
        size: images at once to begin with; None: a default of the device.
        device: where the work happens.
    """

    def __init__(self, size: int | None, device: torch.device) -> None:
        if size is not None and size < 1:
            raise ValueError(f"micro batch of {size}; it must be at least 1")
        self.size = size or DEFAULT_SIZE.get(device.type, 64)

    def run(self, count: int, work: Callable[[slice], Tensor], cost: int = 1) -> Tensor:
        """Concatenate `work(slice)` over slices of `range(count)`; see `pieces`.

        Args:
            count: number of rows, at least 1.
            work: rows of a slice -> tensor whose first dimension counts them.
            cost: images one row stands for.
        """
        return torch.cat(self.pieces(count, work, cost))

    def pieces(self, count: int, work: Callable[[slice], T], cost: int = 1) -> list[T]:
        """What `work(slice)` gives for each slice of `range(count)`.

        Raises:
            torch.OutOfMemoryError: not even one row fits.
        """
        parts: list[T] = []
        start = 0
        while start < count:
            rows = min(max(self.size // cost, 1), count - start)
            try:
                parts.append(work(slice(start, start + rows)))
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not is_out_of_memory(error) or rows == 1:
                    raise
                smaller = rows // 2 * cost
            else:
                start += rows
                continue
            # Outside the handler, as its traceback would keep the failed slice's tensors alive.
            self.size = smaller
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return parts


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device had no memory left; each library words it differently."""
    said = (
        "not enough memory", "can't allocate memory",  # the allocator of CPUs
        "unable to find an engine", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",  # libraries of a GPU
    )  # fmt: skip
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)
