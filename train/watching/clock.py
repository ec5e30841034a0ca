"""Training time, and the part of it spent waiting for data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Training time, and the part of it spent waiting for data. Stops for validation, charts and snapshots."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.before, self.started = seconds, time.perf_counter()
        self.waiting = 0.0

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self.before + time.perf_counter() - self.started

    @contextlib.contextmanager
    def data(self) -> Iterator[None]:
        """Count the block as waiting for data."""
        start = time.perf_counter()
        yield
        self.waiting += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the block."""
        start = time.perf_counter()
        yield
        self.started += time.perf_counter() - start
