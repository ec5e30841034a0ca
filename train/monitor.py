"""What people see of a run: TensorBoard, metrics.jsonl, a progress bar or plain lines. Main process only."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from common.atomic import append_text, atomic_file
from common.text import shown, visible
from train.run_folder import RunFolder

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


class Clock:
    """Training time, and the part of it spent waiting for data. Stops for validation, pictures and snapshots."""

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


class Monitor:
    """Reports of one run; every method does nothing outside the main process.

    Args:
        folder: the run's.
        active: whether this is the main process.
        total: updates of the whole run.
        update: updates done already.
        tensorboard: whether to write events.
    """

    def __init__(self, folder: RunFolder, active: bool, total: int, update: int, tensorboard: bool) -> None:
        self.folder, self.active, self.total = folder, active, total
        self.writer: SummaryWriter | None = None
        self.bar: tqdm[Any] | None = None
        if not active:
            return
        folder.path.mkdir(parents=True, exist_ok=True)
        file = _LogFile(folder.path / "train.log")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(file)
        if tensorboard:
            # purge_step hides what a stopped run wrote after the snapshot.
            self.writer = SummaryWriter(str(folder.tensorboard), purge_step=update + 1 if update else None)
        if sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=update, unit="update", dynamic_ncols=True, file=sys.stderr)

    def close(self) -> None:
        """Finish files and the bar."""
        if self.writer:
            self.writer.close()
        if self.bar is not None:
            self.bar.close()
        for handler in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
            log.removeHandler(handler)
            handler.close()

    def advance(self) -> None:
        """Move the progress bar by one update."""
        if self.bar is not None:
            self.bar.update()

    def scalars(self, update: int, epoch: float, values: dict[str, float]) -> None:
        """Write figures to TensorBoard and as a line of metrics.jsonl."""
        if not self.active:
            return
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, update)
        append_text(self.folder.metrics, json.dumps({"update": update, "epoch": epoch, **values}) + "\n")

    def line(self, update: int, epoch: float, values: dict[str, str], seconds_left: float | None = None) -> None:
        """One line for people, with the time that is left."""
        if not self.active:
            return
        figures = "  ".join(f"{name} {value}" for name, value in values.items())
        left = f"  ETA {duration(seconds_left)}" if seconds_left is not None else ""
        log.info("update %d/%d  epoch %.2f  %s%s", update, self.total, epoch, figures, left)

    def text(self, name: str, content: str) -> None:
        """A text for TensorBoard, such as the resolved recipe."""
        if self.writer:
            self.writer.add_text(name, "    " + visible(content).replace("\n", "\n    "))

    def hyperparameters(self, values: dict[str, Any], metrics: dict[str, float]) -> None:
        """TensorBoard's table of runs."""
        if self.writer:
            plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in values.items()}
            self.writer.add_hparams(plain, {f"final/{k}": v for k, v in metrics.items()}, run_name=".")

    def picture(self, name: str, picture: np.ndarray | Figure, update: int, keep: bool = False) -> None:
        """A picture (uint8 (H, W, 3)) or figure for TensorBoard; `keep` also puts it beside the card as PNG."""
        if not self.active:
            return
        pixels = figure_pixels(picture) if isinstance(picture, Figure) else picture
        if self.writer:
            self.writer.add_image(name, pixels, update, dataformats="HWC")
        if keep:
            save_png(self.folder.pictures / f"{name.rpartition('/')[2]}.png", pixels)

    def histogram(self, name: str, values: torch.Tensor, update: int) -> None:
        """A histogram for TensorBoard."""
        if self.writer:
            self.writer.add_histogram(name, values, update)


def figure_pixels(figure: Figure) -> np.ndarray:
    """uint8 (H, W, 3) of a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as a PNG file, whole or not at all."""
    from PIL import Image

    with atomic_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


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
