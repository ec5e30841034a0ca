"""The state of a training run: all that changes, what a snapshot keeps of it, and how it is taken on again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError, first_line
from common.weights import distinct_state, load_state
from train.averaging import Ema, process_buffers
from train.randomness import random_state, set_random_state


@dataclass
class Progress:
    """How far a run has come."""

    total: int
    """Updates of the whole run."""
    seed: int
    """Of the order of samples and everything drawn for them."""
    images: int
    """Images in the training set."""
    global_batch: int
    """Images per update."""
    processes: int
    """Processes that train."""
    update: int = 0
    """Updates done."""
    best_top1: float = 0.0
    """Best accuracy of the weights that are to be published."""
    best_update: int = 0
    """When it was reached."""
    seconds: float = 0.0
    """Time spent on training, without validation, charts and snapshots."""

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
    initial: dict[str, Tensor]
    """DCLS positions before the first update, by name."""

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
            "initial": self.initial,
        }

    def restore(self, content: dict[str, Any], rank: int, where: str) -> None:
        """Take on the tensors of a snapshot.

        Raises:
            UserError: it belongs to another model or optimiser.
        """
        try:
            self._take_on(content, rank, where)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{where} does not fit this run ({type(error).__name__}: {first_line(error)}); resume an earlier "
                "snapshot by resume=PATH, or start anew"
            ) from error

    def _take_on(self, content: dict[str, Any], rank: int, where: str) -> None:
        parts = content["processes"]
        load_state(self.model, content["model"], where)
        # The snapshot brings what was learnt, the settings of this run the rest: decay, betas, how P learns.
        own = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(content["optimizer"])
        except (ValueError, KeyError) as error:
            reason = first_line(error)
            raise UserError(f"{where} belongs to another optimiser or grouping of parameters: {reason}") from error
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
        if self.ema and content["ema"]:
            load_state(self.ema.model, content["ema"]["model"], where)
            self.ema.updates = content["ema"]["updates"]
        elif self.ema:
            raise UserError(f"{where} has no average of the weights; resume with ema.decay=null or start anew")
        if self.scaler and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        if self.initial.keys() != content["initial"].keys():
            raise KeyError("initial positions of other layers")
        self.initial = content["initial"]
        same = len(parts) == self.progress.processes
        models = [("buffers", self.model), *([("ema_buffers", self.ema.model)] if self.ema else [])]
        for key, model in models:
            for i, buffer in enumerate(process_buffers(model)):
                buffer.copy_(parts[rank][key][i] if same else mean_of(parts, key, i))
        if same:
            if parts[rank]["meters"].shape == self.meters.shape:  # else of other terms; sums begin anew
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
