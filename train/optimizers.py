"""Parameter groups, the optimiser and its learning rate at every update."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

from common.errors import UserError
from common.surgery import position_groups
from train.settings import OptimSettings, PositionSettings, ScheduleSettings


def parameter_groups(model: nn.Module, optim: OptimSettings, positions: PositionSettings) -> list[dict[str, Any]]:
    """Groups of trainable parameters, each with `weight_decay`, `lr_scale`, `kind` and the parameters' `names`.

    P and SIG learn `positions.lr_scale` times faster and never decay, also under layer-wise decay, which
    multiplies that factor. Biases, one-dimensional parameters and those a model names in `no_weight_decay` do
    not decay unless the recipe says so.

    Raises:
        UserError: layer-wise decay of a model that does not tell its layers.
    """
    layer_scale = _layer_scales(model, optim.layer_decay)
    moving = {id(p) for group in position_groups(model) for p in (group.positions, group.sigma) if p is not None}
    named: Any = getattr(model, "no_weight_decay", set)
    exempt = set(named())
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = layer_scale.get(name, 1.0)
        spared = parameter.ndim <= 1 or name.endswith(".bias") or name in exempt
        if id(parameter) in moving:
            kind, scale = "positions", scale * positions.lr_scale
        elif spared and not optim.decay_norm_bias:
            kind = "no_decay"
        else:
            kind = "decay"
        decay = optim.weight_decay if kind == "decay" else 0.0
        new = {"params": [], "names": [], "kind": kind, "lr_scale": scale, "weight_decay": decay}
        if kind == "positions":
            new["use_fallback"] = True  # timm's Muon would orthogonalise them; other optimisers ignore the key
        group = groups.setdefault((kind, scale), new)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Factor of every parameter's learning rate: `decay` to the power of how many layers lie above it."""
    if decay == 1.0:
        return {}
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        raise UserError(f"optim.layer_decay={decay}: {type(model).__name__} does not tell its layers; take 1.0")
    layers = group_parameters(model, matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def create_optimizer(
    model: nn.Module, optim: OptimSettings, positions: PositionSettings, device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser of a recipe, by timm's name; `adamw` is torch's, fused on a GPU.

    Raises:
        UserError: unknown name, or arguments that it does not take.
    """
    groups = parameter_groups(model, optim, positions)
    arguments = dict(optim.args)
    if optim.name == "adamw" and device.type == "cuda":
        arguments.setdefault("fused", True)
    try:
        return create_optimizer_v2(groups, opt=optim.name, lr=optim.lr, **arguments)
    except (ValueError, AssertionError, TypeError, RuntimeError) as error:
        raise UserError(f"optim.name={optim.name} with optim.args={optim.args}: {error}") from error


class Schedule:
    """Learning rate by update index: linear warm-up, cosine, then `min_lr` to the end.

    Args:
        schedule: shape, in epochs.
        peak: learning rate at the end of the warm-up.
        epochs: length of warm-up and cosine.
        updates_per_epoch: not necessarily whole.
        updates: length of the run in updates, to which everything is scaled; by default what `epochs` gives.
    """

    def __init__(
        self,
        schedule: ScheduleSettings,
        peak: float,
        epochs: float,
        updates_per_epoch: float,
        updates: int | None = None,
    ) -> None:
        self.peak, self.start, self.floor = peak, schedule.warmup_lr, schedule.min_lr
        length = epochs + schedule.cooldown_epochs
        self.updates = max(1, int(length * updates_per_epoch)) if updates is None else updates
        per_epoch = self.updates / length if length > 0 else 0.0
        self.warmup = schedule.warmup_epochs * per_epoch
        self.cosine_end = epochs * per_epoch

    def __call__(self, update: int) -> float:
        """Learning rate of an update, counted from 0."""
        if update < self.warmup:
            return self.start + (self.peak - self.start) * update / self.warmup
        if update >= self.cosine_end:
            return self.floor
        part = (update - self.warmup) / max(self.cosine_end - self.warmup, 1e-9)
        return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * part)) / 2


def set_learning_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group the schedule's value times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
