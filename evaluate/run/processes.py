"""The processes that share an evaluation: which one this is, and how they agree."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from common.errors import UserError
from common.launched import refuse_strangers, world_size

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # a rank may have slow images; one that dies is noticed by the launcher


@dataclass
class Processes:
    """This process among those that a launcher started."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def close(self) -> None:
        """Part from the other processes."""
        if self.world > 1:
            PartialState().destroy_process_group()

    def from_main(self, value: T) -> T:
        """The main process's value, on every process."""
        if self.world == 1:
            return value
        box = [value]
        broadcast_object_list(box)
        return box[0]

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns here, once it is done on every process.

        A process that meets a `UserError` tells the others, so that none waits for it, and all raise it.
        """
        results: list[T] = []
        errors: list[UserError] = []
        try:
            results.append(work())
        except UserError as error:
            errors.append(error)
        if self.world > 1:
            errors = gather_object(errors)
        if errors:
            raise errors[0]
        return results[0]

    def gather(self, produce: Callable[[], list[Any]]) -> list[Any]:
        """What `produce` returns, of all processes, joined; see `together`."""
        items = self.together(produce)
        return gather_object(items) if self.world > 1 else items


def start_processes(device: str) -> Processes:
    """Find out about this process; the process group is made only when there are several.

    Args:
        device: `auto`, `cpu` or `cuda`, where convolutions in float32 get all of float32, not TF32 as by default.

    Raises:
        UserError: `cuda` where torch sees no GPU, or processes that do not know of each other.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU that it can use here; take --device cpu or auto")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.backends.cudnn.allow_tf32 = False
    if world_size() > 1:
        state = PartialState(cpu=not on_gpu, timeout=PATIENCE)
        refuse_strangers(state.num_processes)
        # Accelerate numbers CPUs; torch takes `cpu:0` for another place than `cpu`, and copies what goes there.
        return Processes(state.process_index, state.num_processes, state.device if on_gpu else torch.device("cpu"))
    return Processes(0, 1, torch.device("cuda" if on_gpu else "cpu"))


def default_workers(device: torch.device) -> int:
    """Processes that read pictures: two keep a CPU busy; for a GPU each process takes its share of up to 16 cores."""
    if device.type == "cpu":
        return 2
    return max(1, min(16, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
