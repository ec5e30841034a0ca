"""Where a run goes on: its folder, taken by one trainer at a time, and the snapshot that it takes on."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from common.checkpoint import checkpoint_folder
from common.errors import UserError
from train.configure import as_dict
from train.runs.run_folder import RunFolder, find_run, start_of
from train.runs.snapshots import Content, Record, read_snapshot
from train.runs.state import Progress, TrainState
from train.settings import Settings

log = logging.getLogger("train")
LAST_BREATH = 60.0
"""Seconds that a resumed run waits for the one before it, which may still be writing its last snapshot."""


def choose_folder(settings: Settings, accelerator: Accelerator, stack: ExitStack) -> tuple[RunFolder, Path | None]:
    """The run's folder, and the snapshot it goes on from, if it does; one answer for all ranks.

    The folder is this run's alone until `stack` is closed.

    Raises:
        UserError: there is nothing to go on from, another process trains there, or the checkpoint's name is taken by
            another run's.
    """
    answer: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            answer = [_take_folder(settings, stack)]
        except UserError as error:
            answer = [error]
    broadcast_object_list(answer)
    if isinstance(answer[0], UserError):
        raise answer[0]
    return answer[0]


def _take_folder(settings: Settings, stack: ExitStack) -> tuple[RunFolder, Path | None]:
    folder, named = find_run(settings)
    stack.enter_context(folder.taken(0.0 if settings.resume == "none" else LAST_BREATH))
    snapshot = start_of(settings, folder, named)
    if settings.publish:  # refused now, not after the training
        own = None if settings.overwrite else folder.own_weights()
        checkpoint_folder(Path(settings.checkpoints_dir), str(settings.name), own)
    return folder, snapshot


def take_on(state: TrainState, snapshot: Path, settings: Settings, accelerator: Accelerator) -> None:
    """Take on a snapshot; every rank reads it.

    Raises:
        UserError: a rank cannot read it, or it belongs to other data, another model or a longer run.
    """
    content, record = _read_alike(snapshot, accelerator)
    before, now = Progress(**record["progress"]), state.progress
    for name in ("seed", "images", "global_batch"):
        _refuse_change(snapshot, name, getattr(before, name), getattr(now, name), "the order of the data")
    old, new = record["settings"], as_dict(settings)
    for name in ("model", "dcls", "num_classes"):
        _refuse_change(snapshot, name, old.get(name), new[name], "the network")
    for name in ("name", "decay_norm_bias", "layer_decay"):
        _refuse_change(snapshot, f"optim.{name}", old["optim"].get(name), new["optim"][name], "the optimiser's state")
    if before.update > now.total:
        raise UserError(
            f"{snapshot} has done {before.update} updates, and this run ends after {now.total}. Give it more "
            "(updates=N or epochs=N), or resume an earlier snapshot by resume=PATH"
        )
    now.update, now.seconds = before.update, before.seconds
    now.best_top1, now.best_update = before.best_top1, before.best_update
    _restore_alike(state, content, str(snapshot), accelerator)
    log.info("continuing %s after update %d (%s)", snapshot.parent.parent, now.update, snapshot.name)
    if before.processes != now.processes:
        log.warning(
            "the snapshot was made with %d process(es), now there are %d. The order of the data changes: an update "
            "sees the same images, but split in another way, with other mixing and BatchNorm statistics, so its "
            "loss differs",
            before.processes,
            now.processes,
        )
    changed = _differences(old, new)
    if changed:
        log.warning("settings differ from the snapshot's: %s", ", ".join(changed))


def _read_alike(snapshot: Path, accelerator: Accelerator) -> tuple[Content, Record]:
    """Tensors and record of a snapshot, the same in all ranks: on a shared disk one may see an older state."""
    content, record, seen = None, None, ""
    try:
        content, record = read_snapshot(snapshot)
        seen = record["sha256"]
    except UserError as error:
        seen = str(error)
    found = gather_object([seen]) if accelerator.num_processes > 1 else [seen]
    if content is None or record is None or len(set(found)) > 1:
        what = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(found)) if len(found) > 1 else seen
        raise UserError(what if content is None else f"{snapshot} is not the same for all ranks: {what}. Try again")
    return content, record


def _restore_alike(state: TrainState, content: Content, where: str, accelerator: Accelerator) -> None:
    """Take on the tensors in all ranks; what one of them meets, all raise."""
    problem: UserError | None = None
    try:
        state.restore(content, accelerator.process_index, where)
    except UserError as error:
        problem = error
    found = gather_object([problem]) if accelerator.num_processes > 1 else [problem]
    first = next((error for error in found if error is not None), None)
    if first is not None:
        raise first


def _refuse_change(snapshot: Path, name: str, old: Any, new: Any, what: str) -> None:
    if old != new:
        raise UserError(
            f"{snapshot} was made with {name}={old}, this run has {new}; {what} would be another. Resume with the old "
            "value, or start anew with resume=none"
        )


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that may change the result and differ, as `key old -> new`."""
    neutral = {"resume", "run_dir", "runs_dir", "checkpoints_dir", "publish", "log", "snapshots", "workers", "prefetch"}
    found = []
    for key in sorted((old.keys() | new.keys()) - neutral):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} {a} -> {b}")
    return found
