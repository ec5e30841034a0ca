"""One score object for each checkpoint, explainer and protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from common.text import markdown
from evaluate.explainers.registry import EXPLAINERS
from evaluate.rows import SHARED_PASS
from evaluate.scores.groups import Group, GroupKey
from evaluate.scores.statistics import score


def make_scores(
    groups: dict[GroupKey, Group],
    checkpoints: dict[str, dict[str, Any]],
    run: dict[str, Any],
    ceiling: float | None,
    seed: int,
) -> list[dict[str, Any]]:
    """One score object for each checkpoint x explainer x protocol.

    Args:
        groups: the rows.
        checkpoints: what is known of each checkpoint, by name; of its `explainer_seconds` each explainer gets its
            own `seconds_per_image` and `seconds_per_image_shared`.
        run: what holds for the whole run (data, versions, partial, ...), repeated in every object.
        ceiling: see `evaluate.scores.statistics.score`.
        seed: of the bootstrap.
    """
    return [
        {
            "checkpoint": checkpoint,
            **{name: value for name, value in checkpoints[checkpoint].items() if name != "explainer_seconds"},
            "explainer": explainer,
            "protocol": protocol,
            **_seconds(checkpoints[checkpoint]["explainer_seconds"], explainer, len(group.index)),
            **score(group, protocol, ceiling, seed),
            **run,
        }
        for (checkpoint, explainer, protocol), group in groups.items()
    ]


def _seconds(spent: Mapping[str, float], explainer: str | None, images: int) -> dict[str, float | None]:
    """Wall time an image if the explainer ran alone, and the part of it that the explainers at the layer share."""
    if explainer is None or explainer not in spent:
        return {"seconds_per_image": None, "seconds_per_image_shared": None}
    shared = spent[SHARED_PASS] if EXPLAINERS.find(explainer).entry.at_layer else 0.0
    return {"seconds_per_image": (spent[explainer] + shared) / images, "seconds_per_image_shared": shared / images}


def _write_events(folder: Path, item: dict[str, Any]) -> None:
    with SummaryWriter(str(folder), filename_suffix=f".{item['explainer']}.{item['protocol']}") as writer:
        if item["alignment"] is not None:
            writer.add_scalar(f"alignment/{item['explainer']}/{item['protocol']}", item["alignment"], 0)
        writer.add_scalar("top1", item["top1"], 0)
        if note := item["explainer_notes"].get(item["explainer"]):
            writer.add_text(f"note/{item['explainer']}", markdown(note), 0)
