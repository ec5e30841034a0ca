"""Side-by-side timing: alternating runs in one process, medians with their spread, a ratio."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Timing:
    """Seconds of one contestant."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""

    def __str__(self) -> str:
        return f"{self.median * 1e3:.2f} ({self.low * 1e3:.2f}-{self.high * 1e3:.2f})"


_SAMPLE = 0.02  # seconds of work between two looks at the clock on a GPU, whose calls may take microseconds


def alternate(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time every contestant once per round, so that a busy moment of the machine hits all of them.

    After a round of warming up; on a GPU after three, and a contestant runs as often in a row as takes 20 ms.
    """
    gpu = torch.cuda.is_available()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    repeats = dict.fromkeys(contestants, 1)
    for _ in range(3 if gpu else 1):
        for name, work in contestants.items():
            once = _seconds(work, 1)
            repeats[name] = max(1, round(_SAMPLE / once)) if gpu else 1
    for _ in range(rounds):
        for name, work in contestants.items():
            seconds[name].append(_seconds(work, repeats[name]))
    return {name: _summary(values) for name, values in seconds.items()}


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """Of one run, the mean of several."""
    _synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    _synchronise()
    return (time.perf_counter() - start) / repeats


def _summary(values: list[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> str:
    """The machine and versions a figure belongs to."""
    where = platform.processor() or platform.machine()
    if torch.cuda.is_available():
        tf32 = "TF32" if torch.backends.cudnn.allow_tf32 else "no TF32"
        where = f"{torch.cuda.get_device_name()}, cuDNN {torch.backends.cudnn.version()}, convolutions with {tf32}"
    return (
        f"{where}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}, Python {platform.python_version()}"
    )


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
