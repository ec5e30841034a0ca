"""Console output: the log, and durations and tables as text."""

from __future__ import annotations

import contextlib
import logging
import sys

from tqdm import tqdm

from common.text import shown

log = logging.getLogger("train")


def set_up_logging(rank: int) -> None:
    """Lines on standard error from the first process, warnings from the others."""
    log.handlers.clear()
    log.propagate = False
    handler = _ConsoleHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)


class _ConsoleHandler(logging.Handler):
    """Writes above a progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # the terminal may have gone; training goes on
            tqdm.write(shown(self.format(record)), file=sys.stderr)


class _LogFile(logging.FileHandler):
    """Goes without the lines that a full disk does not take; metrics.jsonl says in one line that it is full."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as people write them."""
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def table(rows: list[tuple[str, str]]) -> str:
    """Two columns, aligned."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:{width}}  {value}" for name, value in rows)
