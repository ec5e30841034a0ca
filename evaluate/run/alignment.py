"""Columns of alignment with human maps, and the baselines that need human maps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from evaluate.data.interface import Batch, EvalData
from evaluate.maps.arithmetic import centre_map, dice_of, iou_of, resize_saliency, top_share
from evaluate.maps.frames import frame_human_map
from evaluate.maps.ranks import average_ranks, spearman_from_ranks
from evaluate.network.subject import Subject
from evaluate.rows import OTHER_HUMAN
from evaluate.run.options import RunOptions


class HumanMaps:
    """The human maps of a batch in the frame of every protocol, ranked once for all explainers.

    Args:
        human: (B, S, S) over the whole frame.
        subject: whose field of view `aligned` takes.
        options: for the protocols.
    """

    def __init__(self, human: Tensor, subject: Subject, options: RunOptions) -> None:
        seen = subject.transform.crop / subject.transform.resize
        self.size, self.aligned = human.shape[-1], frame_human_map(human, seen, "aligned")
        framed = {p: frame_human_map(human, seen, p).flatten(1) for p in options.protocols}
        self.ranks = {p: average_ranks(values) for p, values in framed.items()}
        self.tops = {p: top_share(values, 10) for p, values in framed.items()}
        centre = centre_ranks(self.size, human.device)
        self.centre = {p: none_for_nan(spearman_from_ranks(centre.expand_as(r), r)) for p, r in self.ranks.items()}

    def columns(self, saliency: Tensor) -> Iterator[dict[str, list[Any]]]:
        """Columns of (B, h, w) maps for each protocol."""
        values = resize_saliency(saliency, self.size).flatten(1)
        ranks, top = average_ranks(values), top_share(values, 10)
        for protocol, human_ranks in self.ranks.items():
            spearman = none_for_nan(spearman_from_ranks(ranks, human_ranks))
            yield {
                "protocol": [protocol] * len(spearman),
                "spearman": spearman,
                "degenerate": [value is None for value in spearman],  # either map, ours or the human one
                "dice": dice_of(top, self.tops[protocol]).tolist(),
                "iou": iou_of(top, self.tops[protocol]).tolist(),
                "centre_spearman": self.centre[protocol],
            }


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


def none_for_nan(values: Tensor) -> list[float | None]:
    """NaN, where a measure is not defined, becomes None."""
    return [None if math.isnan(value) else value for value in values.tolist()]


@lru_cache(maxsize=1)
def centre_ranks(size: int, device: torch.device) -> Tensor:
    """(1, size * size), the same in every batch."""
    return average_ranks(centre_map(size, device).flatten()[None])
