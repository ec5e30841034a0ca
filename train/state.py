"""The state of a training run, and the snapshots it is resumed from.

A snapshot is a folder `update_NNNNNNNN` with `state.pt` (tensors), and `state.json` (progress, settings and the
SHA-256 of `state.pt`), written under a temporary name and renamed, so a killed run leaves whole ones only.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.atomic import atomic_folder
from common.errors import UserError
from common.weights import distinct_state, load_state, sha256
from train.averaging import Ema, process_buffers
from train.randomness import random_state, set_random_state

log = logging.getLogger("train")


@dataclass
class Progress:
    """How far a run has come."""

    total: int
    """Updates of the whole run."""
    seed: int
    """Of the order of samples and everything drawn for them."""
    images: int
    """Pictures in the training set."""
    global_batch: int
    """Pictures in an update."""
    processes: int
    """Processes that train."""
    update: int = 0
    """Updates done."""
    best_top1: float = 0.0
    """Best accuracy of the weights that are to be published."""
    best_update: int = 0
    """When it was reached."""
    seconds: float = 0.0
    """Time spent on training, without validation, pictures and snapshots."""

    @property
    def exact_epoch(self) -> float:
        """Passes over the data done."""
        return self.update * self.global_batch / self.images

    @property
    def epoch(self) -> int:
        """Epoch of the next sample, counted from 0."""
        return self.update * self.global_batch // self.images

    @property
    def offset(self) -> int:
        """Samples of that epoch already seen."""
        return self.update * self.global_batch % self.images


@dataclass
class TrainState:
    """All that changes while training, and all that a snapshot holds."""

    progress: Progress
    model: nn.Module
    """Unwrapped."""
    optimizer: Any
    ema: Ema | None
    scaler: Any
    """Gradient scaler of fp16, or None."""
    meters: Tensor
    """Sums since the last log point."""

    def own_part(self) -> dict[str, Any]:
        """What differs between processes: random state, BatchNorm statistics, sums since the last log point."""
        ema = self.ema.model if self.ema else None
        return {
            "random": random_state(),
            "buffers": [b.detach().cpu() for b in process_buffers(self.model)],
            "ema_buffers": [b.detach().cpu() for b in process_buffers(ema)] if ema else [],
            "meters": self.meters.cpu(),
        }

    def common_part(self) -> dict[str, Any]:
        """What all processes have in common."""
        return {
            "model": distinct_state(self.model)[0],
            "optimizer": self.optimizer.state_dict(),
            "ema": {"model": distinct_state(self.ema.model)[0], "updates": self.ema.updates} if self.ema else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def restore(self, content: dict[str, Any], rank: int, where: str) -> None:
        """Take on the tensors of a snapshot.

        Raises:
            UserError: it belongs to another model or optimiser.
        """
        parts = content["processes"]
        load_state(self.model, content["model"], where)
        # The snapshot brings what was learnt, the settings of this run the rest: decay, betas, how P learns.
        own = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(content["optimizer"])
        except (ValueError, KeyError) as error:
            raise UserError(f"{where} belongs to another optimiser or grouping of parameters: {error}") from error
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
        if self.ema and content["ema"]:
            load_state(self.ema.model, content["ema"]["model"], where)
            self.ema.updates = content["ema"]["updates"]
        elif self.ema:
            raise UserError(f"{where} has no average of the weights; resume with ema.decay=null or start anew")
        if self.scaler and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        same = len(parts) == self.progress.processes
        models = [("buffers", self.model), *([("ema_buffers", self.ema.model)] if self.ema else [])]
        for key, model in models:
            for i, buffer in enumerate(process_buffers(model)):
                buffer.copy_(parts[rank][key][i] if same else mean_of(parts, key, i))
        if same:
            self.meters.copy_(parts[rank]["meters"])
            set_random_state(parts[rank]["random"])


def mean_of(parts: list[dict[str, Any]], key: str, index: int) -> Tensor:
    """Mean of one buffer over the processes of a snapshot."""
    return torch.stack([part[key][index] for part in parts]).mean(0)


class Undo:
    """What the micro-batches of an update change before its step, kept so that the update can be given up.

    These are the model's buffers (BatchNorm statistics), the random state and the sums since the last log point.
    """

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.tensors = [*state.model.buffers(), state.meters]
        self.kept = [torch.empty_like(tensor) for tensor in self.tensors]
        self.random: dict[str, Any] = {}

    @torch.no_grad()
    def remember(self) -> None:
        """Keep the state as it is; to be called between two updates."""
        self.random = random_state()
        for kept, tensor in zip(self.kept, self.tensors):
            kept.copy_(tensor)

    @torch.no_grad()
    def give_up(self) -> None:
        """Put back what was kept, and drop the gradients."""
        set_random_state(self.random)
        for kept, tensor in zip(self.kept, self.tensors):
            tensor.copy_(kept)
        self.state.optimizer.zero_grad(set_to_none=True)


def save_snapshot(folder: Path, state: TrainState, settings: dict[str, Any], rank: int) -> Path:
    """Write a snapshot into `folder`; every process calls it, the first one writes."""
    place = folder / f"update_{state.progress.update:08d}"
    parts: list[Any] = [state.own_part()]
    if dist.is_initialized() and dist.get_world_size() > 1:
        own, parts = parts[0], [None] * dist.get_world_size()
        dist.all_gather_object(parts, own)
    if rank == 0:
        with atomic_folder(place) as temporary:
            torch.save({**state.common_part(), "processes": parts}, temporary / "state.pt")
            record = {
                "progress": asdict(state.progress),
                "epoch": state.progress.epoch,
                "offset_in_epoch": state.progress.offset,
                "settings": settings,
                "sha256": sha256(temporary / "state.pt"),
            }
            (temporary / "state.json").write_text(json.dumps(record, indent=2) + "\n")
    return place


def kept_snapshots(folder: Path) -> str:
    """What a run that has to end leaves to go on from, as the end of a message."""
    places = list_snapshots(folder)
    return f"{places[-1]} is kept, resume=auto goes on from it" if places else "no snapshot was written before"


def clean_snapshots(folder: Path, keep_last: int, keep_every: int | None) -> None:
    """Remove snapshots but the newest `keep_last` and those at multiples of `keep_every` updates."""
    for place in list_snapshots(folder)[:-keep_last]:
        if not (keep_every and int(place.name.removeprefix("update_")) % keep_every == 0):
            shutil.rmtree(place)


def list_snapshots(folder: Path) -> list[Path]:
    """Snapshots in a folder, oldest first."""
    return sorted(folder.glob("update_*")) if folder.is_dir() else []


def check_snapshot(place: Path) -> dict[str, Any]:
    """The record of a snapshot whose tensors are what was written.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        record = json.loads((place / "state.json").read_text())
        if sha256(place / "state.pt") != record["sha256"]:
            raise UserError(f"{place}: state.pt is not what was written (its SHA-256 differs from state.json's)")
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place} is damaged ({type(error).__name__}: {str(error)[:120]})") from error


def read_snapshot(place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and record of a snapshot.

    Raises:
        UserError: a file is missing or damaged.
    """
    record = check_snapshot(place)
    try:
        return torch.load(place / "state.pt", map_location="cpu", weights_only=True), record
    except (OSError, ValueError, KeyError, RuntimeError, EOFError) as error:
        raise UserError(f"{place} is damaged ({type(error).__name__}: {str(error)[:120]})") from error


def newest_snapshot(folder: Path) -> Path:
    """The newest whole snapshot of a folder. Damaged ones are reported and passed over.

    Raises:
        UserError: there is none.
    """
    places = list_snapshots(folder)
    for place in reversed(places):
        try:
            check_snapshot(place)
            return place
        except UserError as error:
            log.warning("%s; taking the one before it", error)
    raise UserError(f"{folder} holds no whole snapshot" + (f" ({len(places)} damaged)" if places else ""))
