"""Reports of one run: TensorBoard, metrics.jsonl, the log and the progress bar."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from common.atomic import append_text
from common.text import visible
from train.runs.run_folder import RunFolder
from train.watching.console import _LogFile, duration
from train.watching.pictures import figure_pixels, save_png

log = logging.getLogger("train")


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
        """Write numbers to TensorBoard and as a line of metrics.jsonl."""
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
        """An image (uint8 (H, W, 3)) or a chart for TensorBoard; `keep` also puts it beside the card as PNG."""
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
