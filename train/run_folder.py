"""The folder of a run: which one, what lies in it, and where a resumed run continues.

config.yaml   classes.json   metrics.jsonl   train.log   summary.json   initial_positions.safetensors
snapshots/update_NNNNNNNN/    tensorboard/    pictures/
"""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from common.atomic import write_text
from common.errors import UserError
from train.settings import Settings
from train.state import list_snapshots, newest_snapshot


@dataclass
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def snapshots(self) -> Path:
        """Folder of snapshots."""
        return self.path / "snapshots"

    @property
    def config(self) -> Path:
        """Resolved settings and the command."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Every scalar, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def initial_positions(self) -> Path:
        """DCLS positions before the first update."""
        return self.path / "initial_positions.safetensors"

    @property
    def classes(self) -> Path:
        """Class names, where known."""
        return self.path / "classes.json"

    @property
    def summary(self) -> Path:
        """Figures at the end."""
        return self.path / "summary.json"

    @property
    def pictures(self) -> Path:
        """PNG files for the card."""
        return self.path / "pictures"

    @property
    def published(self) -> Path:
        """SHA-256 of the weights that this run published last."""
        return self.path / "published.json"

    def start(self, settings: dict[str, Any], command: str, classes: list[str] | None) -> None:
        """Create the folder of a new run; what one left that died before its first snapshot goes."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self.config.exists():
            for file in (self.metrics, self.summary, self.classes):
                file.unlink(missing_ok=True)
            for folder in (self.path / "tensorboard", self.pictures):
                shutil.rmtree(folder, ignore_errors=True)
        self.describe(settings, command)
        if classes:
            write_text(self.classes, json.dumps(classes))

    def describe(self, settings: dict[str, Any], command: str) -> None:
        """Write down what the run does now: resolved settings and the command."""
        write_text(self.config, f"# {command}\n" + yaml.safe_dump(settings, sort_keys=False))

    def own_weights(self) -> str | None:
        """SHA-256 of the weights that this run published last, if it did."""
        return json.loads(self.published.read_text())["weights_sha256"] if self.published.is_file() else None

    def turn_back(self, update: int) -> None:
        """Forget what a stopped run wrote after the snapshot of `update`, so that no curve has a trace of it.

        The figures of a finished run go too: they are written again at the end.
        """
        self.summary.unlink(missing_ok=True)
        for place in list_snapshots(self.snapshots):
            if int(place.name.removeprefix("update_")) > update:
                shutil.rmtree(place)
        if self.metrics.is_file():
            lines = [json.dumps(line) for line in self.read_metrics() if line["update"] <= update]
            write_text(self.metrics, "".join(f"{line}\n" for line in lines))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without the half one that a killed run was writing."""
        found: list[dict[str, Any]] = []
        for line in self.metrics.read_text().splitlines() if self.metrics.is_file() else []:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found


def new_run(settings: Settings) -> RunFolder:
    """The folder of a run that starts anew.

    Raises:
        UserError: `run_dir` holds a run already, and `resume` does not say that it may be taken up.
    """
    if settings.run_dir is not None:
        path = Path(settings.run_dir)
        if settings.resume == "none" and (path / "config.yaml").exists():
            raise UserError(f"run_dir={path} holds a run already; continue it with resume=auto, or name another folder")
        return RunFolder(path)
    parent = Path(settings.runs_dir) / str(settings.name)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    path = next(p for i in range(1000) if not (p := parent / (f"{stamp}-{i}" if i else stamp)).exists())
    return RunFolder(path)


def run_to_resume(settings: Settings) -> tuple[RunFolder, Path] | None:
    """The run that `resume` means, and the snapshot it goes on from; None to start anew.

    Raises:
        UserError: `resume` names a path without snapshots, or none of them is whole.
    """
    if settings.resume == "none":
        return None
    if settings.resume == "auto":
        if settings.run_dir is not None:
            runs = [Path(settings.run_dir)]
        else:
            runs = sorted((Path(settings.runs_dir) / str(settings.name)).glob("*/"))
        left = [run for run in runs if list_snapshots(run / "snapshots")]
        return _newest(left[-1]) if left else None
    path = Path(settings.resume)
    if (path / "state.json").is_file():
        return RunFolder(path.parent.parent), path
    if list_snapshots(path / "snapshots"):
        return _newest(path)
    raise UserError(f"resume={path}: no run or snapshot there; give runs/NAME/TIME, a snapshot in it, `auto` or `none`")


def _newest(run: Path) -> tuple[RunFolder, Path]:
    folder = RunFolder(run)
    return folder, newest_snapshot(folder.snapshots)
