"""Stopping in order: signals and lost launchers are noticed in every rank, and all ranks agree on where to stop.

`accelerate launch` dies of SIGTERM and leaves its trainer running; torchrun passes SIGTERM on but not SIGUSR1,
of which it dies. So each rank listens for itself and watches whether its launcher is still there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from enum import IntEnum
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from common.errors import UserError

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others, while one reads a slow disk or compiles."""
_LAUNCHER_MARKS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # set by torchrun and `accelerate launch`
_ECHO_SECONDS = 3.0
"""Ctrl-C reaches launcher and trainers alike, and the launcher passes it on: within this time it is one signal."""


class Stop(IntEnum):
    """Why a run stops early; the largest of all ranks counts."""

    NO = 0
    SIGNAL = 1
    """SIGTERM, or the launcher has gone."""
    REQUEUE = 2
    """SIGUSR1: time is nearly up; under SLURM the job is put in the queue again."""
    INTERRUPT = 3
    """Ctrl-C."""


_MEANING = {signal.SIGTERM: Stop.SIGNAL, signal.SIGUSR1: Stop.REQUEUE, signal.SIGINT: Stop.INTERRUPT}


class StopListener:
    """Remembers signals; `agree` makes one decision of what all ranks know.

    Python runs a handler only between two of its own instructions, and a backward pass is one that may take minutes.
    So the interpreter also writes each signal's number into a pipe, and a thread answers at once: the first SIGINT or
    SIGTERM is announced, the second one ends the process without a snapshot.

    Args:
        speaks: whether this process tells the user; one of all should.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.wish, self.speaks = Stop.NO, speaks
        self.parent = os.getppid() if any(mark in os.environ for mark in _LAUNCHER_MARKS) else None
        # The flags travel between the hosts on the CPU, so that no GPU is waited for.
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.group: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if several else None
        self._announced: float | None = None
        self._pipe, self._signals = os.pipe()
        os.set_blocking(self._signals, False)
        self._replaced_pipe = signal.set_wakeup_fd(self._signals)
        self._replaced = {number: signal.signal(number, self._remember) for number in _MEANING}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Put back the handlers that stood before."""
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._replaced_pipe)
        os.write(self._signals, bytes(1))  # ends the thread; other processes may hold the pipe open
        self._thread.join()
        os.close(self._pipe)
        os.close(self._signals)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.wish = max(self.wish, _MEANING[signal.Signals(number)])

    def _listen(self) -> None:
        while number := os.read(self._pipe, 1)[0]:
            if number in (signal.SIGINT, signal.SIGTERM):
                self._answer(signal.Signals(number))

    def _answer(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._announced is None:
            self._announced = now
            self._say(f"{number.name}: stopping after this micro-batch, with a snapshot; again to stop now")
        elif self.parent is None or now - self._announced > _ECHO_SECONDS:
            self._say(f"{number.name}: stopped at once, without a snapshot; resume=auto goes on from the last one")
            os._exit(128 + number)

    def _say(self, text: str) -> None:
        if self.speaks:
            with contextlib.suppress(OSError):  # the terminal may have gone
                os.write(2, f"{text}\n".encode())

    def agree(self, snapshot_due: bool = False) -> tuple[Stop, bool]:
        """Whether to stop here, and whether to write a snapshot now; the same answer in all ranks."""
        if self.parent is not None and os.getppid() != self.parent:
            self.wish = max(self.wish, Stop.SIGNAL)
        flags = torch.tensor([int(self.wish), int(snapshot_due)])
        if self.group is not None:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.group)
        return Stop(int(flags[0])), bool(flags[1])


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Hold signals until the block ends. Processes started in it begin so as well, and may then call `obey_parent`."""
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
