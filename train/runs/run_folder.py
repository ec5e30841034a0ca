"""The folder of a run: which one, what lies in it, and where a resumed run continues.

config.yaml   classes.json   metrics.jsonl   train.log   summary.json   published.json
snapshots/update_NNNNNNNN/    tensorboard/    pictures/
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from common.atomic import write_text
from common.errors import UserError
from common.leftovers import clear_leftovers
from common.lock import locked
from train.runs.snapshots import list_snapshots, newest_snapshot, update_of
from train.settings import Settings

log = logging.getLogger("train")
COMMAND = "python train/main.py"
"""How the first line of config.yaml begins."""
PICTURES = ("curve", "positions", "displacement", "kernels")
"""What is drawn for the card, by name of file."""


@dataclass
class RunFolder:
    """Paths of one run."""

    path: Path
    fresh: bool = field(default=False, compare=False)
    """Made just now, so that it goes again if nothing comes into it."""

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
        """SHA-256 of weights that this run published."""
        return self.path / "published.json"

    @property
    def tensorboard(self) -> Path:
        """Events."""
        return self.path / "tensorboard"

    @contextmanager
    def taken(self, patience: float) -> Iterator[None]:
        """Within the block no other process writes here; a folder that stays empty is removed.

        Raises:
            UserError: another one does, after `patience` seconds still.
        """
        fresh = self.fresh or not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        advice = "wait for its end or stop it, or take another run_dir"
        try:
            with locked(self.path / ".lock", f"the run {self.path}", advice, patience, log.warning):
                for folder in (self.path, self.snapshots, self.pictures):
                    clear_leftovers(folder, alone=True)
                yield
        finally:
            if fresh:
                with suppress(OSError):  # something is there
                    self.path.rmdir()

    def refuse_strangers(self) -> None:
        """See that nothing lies here that a run would replace and none has made.

        Raises:
            UserError: something does.
        """
        files = (self.config, self.metrics, self.classes, self.summary, self.published)
        there = [path.name for path in (*files, self.snapshots, self.pictures, self.tensorboard) if path.exists()]
        if there and not self._is_run():
            raise UserError(
                f"run_dir={self.path} holds {', '.join(there)}, and no run that is known here; name another folder"
            )

    def _is_run(self) -> bool:
        """Whether a run's settings lie here, which it writes before anything else."""
        try:
            text = self.config.read_text(encoding="utf-8")
            settings = yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            return False
        known = {"recipe", "model", "optim", "global_batch", "checkpoints_dir"}
        return text.startswith(f"# {COMMAND} ") and isinstance(settings, dict) and known <= settings.keys()

    def start(self, settings: dict[str, Any], command: str, classes: list[str] | None) -> None:
        """Begin a new run; leftovers of one that died before its first snapshot are removed."""
        if self.config.exists():
            events = self.tensorboard.glob("events.out.tfevents.*")
            pictures = (self.pictures / f"{name}.png" for name in PICTURES)
            for file in (self.metrics, self.summary, self.classes, *events, *pictures):
                file.unlink(missing_ok=True)
        self.describe(settings, command, classes)

    def describe(self, settings: dict[str, Any], command: str, classes: list[str] | None) -> None:
        """Write down what the run does now: resolved settings, the command and the names of classes."""
        write_text(self.config, f"# {command}\n" + yaml.safe_dump(settings, sort_keys=False))
        if classes:
            write_text(self.classes, json.dumps(classes))

    def own_weights(self) -> list[str]:
        """SHA-256 of the weights that this run published last and, as it may have been killed over it, before."""
        try:
            found = json.loads(self.published.read_text(encoding="utf-8"))["weights_sha256"]
            return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return []

    def will_publish(self, weights_sha256: str) -> None:
        """Write down whose the weights are that are about to be published."""
        known = [weights_sha256, *(text for text in self.own_weights() if text != weights_sha256)]
        write_text(self.published, json.dumps({"weights_sha256": known[:2]}) + "\n")

    def turn_back(self, update: int) -> None:
        """Forget what a stopped run wrote after the snapshot of `update`, so that no curve has a trace of it.

        The figures of a finished run go too: they are written again at the end.
        """
        self.summary.unlink(missing_ok=True)
        for place in self.newer_snapshots(update):
            shutil.rmtree(place)
        if self.metrics.is_file():
            lines = [json.dumps(line) for line in self.read_metrics(update)]
            write_text(self.metrics, "".join(f"{line}\n" for line in lines))

    def newer_snapshots(self, update: int) -> list[Path]:
        """Snapshots after the one of `update`, newest first."""
        return [place for place in reversed(list_snapshots(self.snapshots)) if (update_of(place) or 0) > update]

    def read_metrics(self, until: int | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, up to an update, without those that a killed run or a bad disk has spoilt."""
        found: list[dict[str, Any]] = []
        text = self.metrics.read_text(encoding="utf-8", errors="replace") if self.metrics.is_file() else ""
        for line in text.split("\n"):
            with suppress(ValueError, RecursionError):
                values = json.loads(line)
                if _are_figures(values) and (until is None or values["update"] <= until):
                    found.append(values)
        return found

    def is_validated(self, update: int) -> bool:
        """Whether metrics.jsonl has the validation after an update."""
        return any(line["update"] == update and any(k.startswith("val_") for k in line) for line in self.read_metrics())


def _are_figures(line: Any) -> bool:
    """Whether this is a line of metrics.jsonl: numbers by name, and of which update and epoch they are."""
    if not isinstance(line, dict) or not {"update", "epoch"} <= line.keys():
        return False
    return type(line["update"]) is int and all(type(value) in (int, float) for value in line.values())


def find_run(settings: Settings) -> tuple[RunFolder, Path | None]:
    """The folder that `run_dir` and `resume` mean, and the snapshot in it that `resume` names, if it names one.

    A folder that they leave to this program is made.

    Raises:
        UserError: `resume` names a path without snapshots.
    """
    if settings.resume not in ("none", "auto"):
        return _named(Path(settings.resume))
    if settings.run_dir is not None:
        return RunFolder(Path(settings.run_dir)), None
    runs = Path(settings.runs_dir) / str(settings.name)
    if settings.resume == "auto":
        left = [run for run in sorted(runs.glob("*/")) if list_snapshots(run / "snapshots")]
        if left:
            return RunFolder(left[-1]), None
    return RunFolder(_make_folder(runs), fresh=True), None


def start_of(settings: Settings, folder: RunFolder, named: Path | None) -> Path | None:
    """The snapshot that a run goes on from; None to start anew. To be asked while the run's folder is taken.

    Raises:
        UserError: there is a run already and `resume` does not say that it goes on, or files that are no run's; or
            going on would remove snapshots, or none of them is whole.
    """
    if named is not None:
        newer = folder.newer_snapshots(update_of(named) or 0)
        if newer and not settings.overwrite:
            raise UserError(
                f"resume={named}: {len(newer)} newer snapshots, to {newer[0].name}, would be removed. Go on from the "
                f"newest by resume={folder.path}, or add overwrite=true to remove them"
            )
        return named
    going_on = bool(list_snapshots(folder.snapshots))
    if going_on and settings.resume != "none":
        return newest_snapshot(folder.snapshots)
    if not going_on:
        folder.refuse_strangers()
    if going_on or (settings.resume == "none" and folder.config.exists()):
        raise UserError(
            f"run_dir={folder.path} holds a run already; continue it with resume=auto, or name another folder"
        )
    return None


def _named(path: Path) -> tuple[RunFolder, Path | None]:
    if (path / "state.json").is_file() and update_of(path) is not None and path.absolute().parent.name == "snapshots":
        return RunFolder(path.parent.parent), path
    if list_snapshots(path / "snapshots"):
        return RunFolder(path), None
    raise UserError(
        f"resume={path}: no run or snapshot there; give runs/NAME/TIME, runs/NAME/TIME/snapshots/update_NNNNNNNN, "
        "`auto` or `none`"
    )


def _make_folder(runs: Path) -> Path:
    """A folder for a new run that no other run has chosen."""
    runs.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in itertools.count():
        path = runs / (f"{stamp}-{number}" if number else stamp)
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError
