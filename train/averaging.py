"""Averages: of the weights over time (EMA), and of BatchNorm's statistics over the processes."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn


def distinct_tensors(model: nn.Module) -> list[Tensor]:
    """Every parameter and persistent buffer of a model once, also where several layers share it."""
    found = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return list(found.values())


class Ema:
    """Exponential moving average of a model's parameters and buffers.

    Each distinct tensor is averaged once in an update. (Averages that walk the state dict visit positions shared
    by n layers n times, so that those decay with the n-th power.) Numbers that are not floats are copied.

    Attributes:
        model: the averaged model, in evaluation mode.
        updates: how many were averaged.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.warmup, self.updates = decay, warmup, 0
        pairs = list(zip(distinct_tensors(self.model), distinct_tensors(model), strict=True))
        self.floats = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        self.others = [(mine, theirs) for mine, theirs in pairs if not mine.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        mine, theirs = zip(*self.floats)
        torch._foreach_lerp_(list(mine), [t.detach() for t in theirs], 1 - decay)
        for own, other in self.others:
            own.copy_(other)


def process_buffers(model: nn.Module) -> list[Tensor]:
    """Buffers that differ between processes: the floating-point ones, BatchNorm's running statistics."""
    return [b for b in model.buffers() if b.is_floating_point()]


@torch.no_grad()
def average_buffers(*models: nn.Module) -> None:
    """Replace BatchNorm's running statistics by their mean over all processes, in place."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return
    for model in models:
        for buffer in process_buffers(model):
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()
