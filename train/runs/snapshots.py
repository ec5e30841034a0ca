"""Snapshots, which a run is resumed and published from.

A snapshot is a folder `update_NNNNNNNN` with `state.pt` (tensors) and `state.json` (progress, settings, command,
classes, and the SHA-256 of `state.pt`). It appears whole, and lasts through a power cut. All that a run needs to go on
lies in it; the run's other files are for people.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from common.atomic import atomic_folder
from common.errors import UserError, first_line
from common.weights import sha256
from train.runs.state import Progress, TrainState
from train.settings import Settings

log = logging.getLogger("train")
_NAME = re.compile(r"update_([0-9]{8,18})")
Content = dict[str, Any]
"""Tensors of a snapshot."""
Record = dict[str, Any]
"""What `state.json` says of it."""


class _DamageError(Exception):
    """What is wrong with a snapshot."""


def save_snapshot(folder: Path, state: TrainState, about: dict[str, Any], rank: int) -> Path:
    """Write a snapshot into `folder`; every process calls it, the first one writes.

    Args:
        folder: of snapshots.
        state: of this process.
        about: `settings`, `command` and `classes` of the run.
        rank: of this process.
    """
    place = folder / f"update_{state.progress.update:08d}"
    parts: list[Any] = [state.own_part()]
    if dist.is_initialized() and dist.get_world_size() > 1:
        own, parts = parts[0], [None] * dist.get_world_size()
        dist.all_gather_object(parts, own)
    if rank == 0:
        with atomic_folder(place, lasting=True) as temporary:
            torch.save({**state.common_part(), "processes": parts}, temporary / "state.pt")
            record = {
                "progress": asdict(state.progress),
                "epoch": state.progress.epoch,
                "offset_in_epoch": state.progress.offset,
                **about,
                "sha256": sha256(temporary / "state.pt"),
            }
            (temporary / "state.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return place


def update_of(place: Path) -> int | None:
    """The update that a snapshot was made after, by its folder's name; None where that is no snapshot's."""
    found = _NAME.fullmatch(place.name)
    return int(found[1]) if found else None


def list_snapshots(folder: Path) -> list[Path]:
    """Snapshots in a folder, oldest first; what else lies there is passed over."""
    found = [(update, place) for place in folder.glob("update_*") if (update := update_of(place)) is not None]
    return [place for _, place in sorted(found) if place.is_dir() and not place.is_symlink()]


def kept_snapshots(folder: Path) -> str:
    """What a run that has to end leaves to go on from, as the end of a message."""
    places = list_snapshots(folder)
    return f"{places[-1]} is kept, resume=auto goes on from it" if places else "no snapshot was written before"


def clean_snapshots(folder: Path, keep_last: int, keep_every: int | None) -> None:
    """Remove snapshots but the newest `keep_last` and those at multiples of `keep_every` updates."""
    for place in list_snapshots(folder)[:-keep_last]:
        if not (keep_every and (update_of(place) or 0) % keep_every == 0):
            shutil.rmtree(place)


def newest_snapshot(folder: Path) -> Path:
    """The newest whole snapshot of a folder. Damaged ones are reported and passed over.

    Raises:
        UserError: there is none.
    """
    places = list_snapshots(folder)
    for place in reversed(places):
        try:
            read_snapshot(place, values=False)
            return place
        except UserError as error:
            log.warning("%s; taking the one before it", error)
    raise UserError(
        f"{folder} holds no whole snapshot ({len(places)} damaged); start anew with another run_dir"
        if places
        else f"{folder} holds no snapshot"
    )


def read_snapshot(place: Path, values: bool = True) -> tuple[Content, Record]:
    """Tensors and record of a snapshot; without `values` the tensors stay on the disk until they are looked at.

    Raises:
        UserError: a file is missing, is not what was written, or holds something else than a snapshot's.
    """
    try:
        record = json.loads((place / "state.json").read_text(encoding="utf-8"))
        _check_record(record, place)
        if sha256(place / "state.pt") != record["sha256"]:
            raise _DamageError("state.pt is not what was written (its SHA-256 differs from state.json's)")
        content = torch.load(place / "state.pt", map_location="cpu", weights_only=True, mmap=not values)
        _check_content(content, record)
        return content, record
    except _DamageError as error:
        reason = str(error)
    except pickle.UnpicklingError:
        reason = "state.pt holds something else than tensors"  # torch's own advice would be to run it
    except (FileNotFoundError, NotADirectoryError) as error:
        reason = f"{Path(error.filename or place).name} is missing"
    except Exception as error:  # of whatever kind, as a pickle that is none of ours may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
    raise UserError(f"{place} is damaged: {reason}")


def settings_of(record: Record) -> Settings:
    """The resolved settings that a snapshot was made with; `read_snapshot` has looked at them."""
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), record["settings"]))
    assert isinstance(settings, Settings)
    return settings


def _check_record(record: Any, place: Path) -> None:
    known = {"progress", "epoch", "offset_in_epoch", "settings", "command", "classes", "sha256"}
    _check_keys("state.json", record, known)
    _check_progress(record["progress"])
    if record["progress"]["update"] != update_of(place):
        raise _DamageError(f"it is of update {record['progress']['update']}, which its name does not say")
    if not isinstance(record["sha256"], str) or not isinstance(record["command"], str):
        raise _DamageError("state.json: sha256 and command are not texts")
    classes = record["classes"]
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise _DamageError("state.json: classes is no list of names")
    if not isinstance(record["settings"], dict) or "${" in json.dumps(record["settings"]):
        raise _DamageError("state.json: settings are not plain values by name")
    try:
        settings_of(record)
    except OmegaConfBaseException as error:
        raise _DamageError(f"state.json: settings: {first_line(error)}") from error


def _check_progress(progress: Any) -> None:
    _check_keys("progress", progress, {field.name for field in fields(Progress)})
    for field in fields(Progress):
        value = progress[field.name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        real = whole or (isinstance(value, float) and math.isfinite(value))
        least = 1 if field.name in ("images", "global_batch", "processes") else 0
        if not (whole if field.type == "int" else real) or not least <= value < 2**63:
            raise _DamageError(f"progress.{field.name} is {value!r:.40}")
    if not progress["best_update"] <= progress["update"] <= progress["total"]:
        raise _DamageError(f"progress.update is {progress['update']} of {progress['total']}")


def _check_content(content: Any, record: Record) -> None:
    """Whether everything is there and of the right kind; whether it fits the model is seen when it is taken on."""
    _check_keys("state.pt", content, {"model", "optimizer", "ema", "scaler", "initial", "processes"})
    _check_tensors("model", content["model"])
    _check_tensors("initial", content["initial"])
    _check_keys("optimizer", content["optimizer"], {"state", "param_groups"})
    if content["ema"] is not None:
        _check_keys("ema", content["ema"], {"model", "updates"})
        _check_tensors("ema.model", content["ema"]["model"])
        if type(content["ema"]["updates"]) is not int or content["ema"]["updates"] < 0:
            raise _DamageError(f"ema.updates is {content['ema']['updates']!r:.40}")
    if not isinstance(content["scaler"], dict | None):
        raise _DamageError("scaler holds something else than values by name")
    parts, processes = content["processes"], record["progress"]["processes"]
    if not isinstance(parts, list) or len(parts) != processes:
        raise _DamageError(f"processes is no list of {processes}")
    for number, part in enumerate(parts):
        _check_keys(f"processes.{number}", part, {"random", "buffers", "ema_buffers", "meters"})
        for name in ("buffers", "ema_buffers"):
            if not isinstance(part[name], list):
                raise _DamageError(f"processes.{number}.{name} is no list")
            _check_tensors(f"processes.{number}.{name}", dict(enumerate(part[name])))
        _check_tensors(f"processes.{number}", {"meters": part["meters"]})


def _check_keys(what: str, found: Any, known: set[str]) -> None:
    if not isinstance(found, dict):
        raise _DamageError(f"{what} holds something else than values by name")
    for problem, names in (("lacks", known - found.keys()), ("has an unknown", found.keys() - known)):
        if names:
            raise _DamageError(f"{what} {problem} {', '.join(sorted(map(str, names))):.80}")


def _check_tensors(what: str, found: Any) -> None:
    if not isinstance(found, dict):
        raise _DamageError(f"{what} holds something else than tensors by name")
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise _DamageError(f"{what}.{name} is no tensor")
