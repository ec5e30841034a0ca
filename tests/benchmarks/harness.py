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


def alternate(contestants: dict[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, Timing]:
    """Time every contestant once a round, so that a busy moment of the machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warmup + rounds):
        for name, work in contestants.items():
            _synchronise()
            start = time.perf_counter()
            work()
            _synchronise()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: _summary(values) for name, values in seconds.items()}


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
    where = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.processor() or platform.machine()}"
    )
    return (
        f"{where}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}, Python {platform.python_version()}"
    )


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
