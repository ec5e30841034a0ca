"""Stopping in order: signals and lost launchers are noticed in every rank, and all ranks agree on the update.

`accelerate launch` dies of SIGTERM and leaves its trainer running; torchrun passes SIGTERM on but not SIGUSR1,
of which it dies. So each rank listens for itself and watches whether its launcher is still there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from enum import IntEnum
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from common.errors import UserError

_LAUNCHER_MARKS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # set by torchrun and `accelerate launch`


class Stop(IntEnum):
    """Why a run stops early; the largest of all ranks counts."""

    NO = 0
    SIGNAL = 1
    """SIGTERM, or the launcher has gone."""
    REQUEUE = 2
    """SIGUSR1: time is nearly up; under SLURM the job is put in the queue again."""
    INTERRUPT = 3
    """Ctrl-C; a second one does not wait for the snapshot."""


_MEANING = {signal.SIGTERM: Stop.SIGNAL, signal.SIGUSR1: Stop.REQUEUE, signal.SIGINT: Stop.INTERRUPT}


class StopListener:
    """Remembers signals; `agree` makes one decision of what all ranks know."""

    def __init__(self) -> None:
        self.wish = Stop.NO
        self.parent = os.getppid() if any(mark in os.environ for mark in _LAUNCHER_MARKS) else None
        # The flags travel between the hosts on the CPU, so that no GPU is waited for.
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.group: Any = dist.new_group(backend="gloo") if several else None
        self.replaced = {number: signal.signal(number, self._notice) for number in _MEANING}

    def close(self) -> None:
        """Put back the handlers that stood before."""
        for number, handler in self.replaced.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.wish is Stop.INTERRUPT:
            raise KeyboardInterrupt
        self.wish = max(self.wish, _MEANING[signal.Signals(number)])

    def agree(self, snapshot_due: bool) -> tuple[Stop, bool]:
        """Whether to stop after this update, and whether to write a snapshot now; the same answer in all ranks."""
        if self.parent is not None and os.getppid() != self.parent:
            self.wish = max(self.wish, Stop.SIGNAL)
        flags = torch.tensor([int(self.wish), int(snapshot_due)])
        if self.group is not None:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.group)
        return Stop(int(flags[0])), bool(flags[1])


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Signals come after the block. Processes started in it begin the same way, and may then call `obey_parent`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _MEANING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent(worker: int) -> None:
    """For loader processes started under `signals_wait`: only the trainer that started them may end them.

    A launcher or a terminal signals every process of a job, and the last update still needs its data. Where a trainer
    exits with its loader open, though, Python sends SIGTERM to the loader's processes and waits until they are gone.
    """

    def listen() -> None:
        while signal.sigwaitinfo(_MEANING).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()


def requeue() -> str:
    """Put this SLURM job in the queue again; says what was done."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return "no SLURM job: continue with resume=auto"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"the snapshot is written, but scontrol requeue {job} failed: {error}") from error
    return f"SLURM job {job} is in the queue again"
