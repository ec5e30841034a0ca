"""Columns of alignment with human maps, and the baselines that need human maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from evaluate.data.interface import Batch, EvalData
from evaluate.maps.arithmetic import centre_map, dice_of, iou_of, resize_saliency, top_share
from evaluate.maps.frames import frame_human_map
from evaluate.maps.ranks import average_ranks, spearman_from_ranks
from evaluate.network.subject import Subject
from evaluate.rows import ALIGNMENT, OTHER_HUMAN
from evaluate.run.options import RunOptions


class FlatMaps:
    """Square maps of a batch, one row of pixels per image; what several metrics need of them is computed once.

    Args:
        values: (B, S * S).
        size: S.
    """

    def __init__(self, values: Tensor, size: int) -> None:
        self.values, self.size = values, size

    @cached_property
    def ranks(self) -> Tensor:
        """(B, S * S)."""
        return average_ranks(self.values)

    @cached_property
    def top(self) -> Tensor:
        """(B, S * S) bool, the top 10 % of pixels."""
        return top_share(self.values, 10)

    @cached_property
    def centre_spearman(self) -> Tensor:
        """(B,) Spearman correlation with a centred Gaussian, NaN for a constant map."""
        return spearman_from_ranks(centre_ranks(self.size, self.values.device).expand_as(self.ranks), self.ranks)


class MapPair:
    """Saliency maps and the human maps of the same images, in one frame."""

    def __init__(self, saliency: FlatMaps, human: FlatMaps) -> None:
        self.saliency, self.human = saliency, human

    @cached_property
    def spearman(self) -> Tensor:
        """(B,), NaN where either map is constant."""
        return spearman_from_ranks(self.saliency.ranks, self.human.ranks)


ALIGNMENT_FUNCTIONS: dict[str, Callable[[MapPair], Tensor]] = {
    "spearman": lambda pair: pair.spearman,
    "degenerate": lambda pair: pair.spearman.isnan(),
    "dice": lambda pair: dice_of(pair.saliency.top, pair.human.top),
    "iou": lambda pair: iou_of(pair.saliency.top, pair.human.top),
    "centre_spearman": lambda pair: pair.human.centre_spearman,
}
"""What computes each column of `evaluate.rows.ALIGNMENT`: (B,), NaN where it is not defined."""


class HumanMaps:
    """The human maps of a batch in the frame of every protocol; what is computed of them serves all explainers.

    Args:
        human: (B, S, S) over the whole frame.
        subject: whose field of view `aligned` takes.
        options: for the protocols.
    """

    def __init__(self, human: Tensor, subject: Subject, options: RunOptions) -> None:
        seen = subject.transform.crop / subject.transform.resize
        self.size, self.aligned = human.shape[-1], frame_human_map(human, seen, "aligned")
        self.framed = {p: FlatMaps(frame_human_map(human, seen, p).flatten(1), self.size) for p in options.protocols}

    def columns(self, saliency: Tensor) -> Iterator[dict[str, list[Any]]]:
        """Columns of (B, h, w) maps for each protocol."""
        maps = FlatMaps(resize_saliency(saliency, self.size).flatten(1), self.size)
        for protocol, human in self.framed.items():
            pair = MapPair(maps, human)
            found = {name: none_for_nan(ALIGNMENT_FUNCTIONS[name](pair)) for name in ALIGNMENT}
            yield {"protocol": [protocol] * len(maps.values), **found}


def other_human_maps(data: EvalData, batch: Batch, device: torch.device, skip_bad: bool) -> Tensor | None:
    """(B, S, S) human maps, for each image that of the next one; None where no other image can be read."""
    maps = [_next_human_map(data, index, skip_bad) for index in batch.indices.tolist()]
    found = [human for human in maps if human is not None]
    return data.human_maps(torch.stack(found).to(device)) if len(found) == len(maps) else None


def _next_human_map(data: EvalData, index: int, skip_bad: bool) -> Tensor | None:
    """As stored, of the next image that can be read."""
    for step in range(1, len(data)):
        try:
            human = data.picture((index + step) % len(data)).human
        except UserError:
            if not skip_bad:
                raise
            continue
        if human is None:
            raise UserError(f"{OTHER_HUMAN} needs human maps; {data.name} has none")
        return human
    return None


def none_for_nan(values: Tensor) -> list[Any]:
    """As plain values; NaN, where a metric is not defined, becomes None."""
    return [None if math.isnan(value) else value for value in values.tolist()]


@lru_cache(maxsize=1)
def centre_ranks(size: int, device: torch.device) -> Tensor:
    """(1, size * size), the same in every batch."""
    return average_ranks(centre_map(size, device).flatten()[None])
