"""Remarks at the start of a run on its data and its machine, where they may surprise."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from common.data.records import Selection
from train.data.batch import BatchSource
from train.data.images import Photographs
from train.settings import Settings
from train.watching.console import duration

_CORE_SECONDS, _GIB = 0.4, 0.1  # of ConvNeXt-T in training, per image of 224 px
_SLOW = 60  # seconds per update


def remarks(train: BatchSource, val: BatchSource, settings: Settings, device: torch.device) -> list[tuple[str, str]]:
    """Rows for the table at the head of a run; none where there is nothing to remark."""
    found = {"classes": _class_remark(train, val, settings), "warning": _gaps(train, val)}
    found["hint"] = _machine_hint(settings) if device.type == "cpu" else None
    return [(name, text) for name, text in found.items() if text]


def _labels(source: BatchSource) -> NDArray[np.int64] | None:
    return source.records.labels if isinstance(source, Photographs) else None


def _class_remark(train: BatchSource, val: BatchSource, settings: Settings) -> str | None:
    trained, validated = _labels(train), _labels(val)
    if settings.data.source != "imagefolder" or trained is None or validated is None:
        return None
    folders = len(np.union1d(trained, validated))  # none is empty
    if train.classes is None or folders == len(train.classes):
        return None
    return f"{folders} class folders with WordNet ids: labels are ImageNet's, {settings.num_classes} outputs"


def _gaps(train: BatchSource, val: BatchSource) -> str | None:
    trained, validated = _labels(train), _labels(val)
    if trained is None or validated is None:
        return None
    places = [_named(np.setdiff1d(validated, trained), train), _named(np.setdiff1d(trained, validated), train)]
    said = [f"{place} no image to {use}" for place, use in zip(places, ("train on", "validate on")) if place]
    if not said:
        return None
    held_out = isinstance(val, Photographs) and isinstance(val.records, Selection)
    advice = "; data.val_fraction sets the share held out, data.val_root names other images" if held_out else ""
    return f"of {len(np.union1d(trained, validated))} classes, " + " and ".join(said) + advice


def _named(labels: Sequence[int] | NDArray[np.int64], source: BatchSource) -> str:
    """How many classes, and one of them by name; empty for none."""
    if not len(labels):
        return ""
    name = source.classes[labels[0]].partition(",")[0] if source.classes else str(labels[0])
    return f"{len(labels)} ({name}{', ...' if len(labels) > 1 else ''}) have"


def _machine_hint(settings: Settings) -> str | None:
    """For a recipe of ImageNet on a CPU."""
    cores = len(os.sched_getaffinity(0))
    size = (settings.data.image_size / 224) ** 2
    seconds = settings.global_batch * size * _CORE_SECONDS / cores
    if seconds < _SLOW:
        return None
    return (
        f"{cores} CPU core(s): an update of {settings.global_batch} images would take ConvNeXt-T about "
        f"{duration(seconds)}, and batch_size={settings.batch_size} about "
        f"{settings.batch_size * size * _GIB:.1f} GiB. smoke=true tries the recipe; smaller global_batch, batch_size "
        "and data.image_size suit a CPU"
    )
