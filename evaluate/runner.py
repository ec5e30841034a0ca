"""Measure one checkpoint: record -> features -> head -> maps -> rank correlation -> one row an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import UserError
from evaluate.data import Batch, EvalData, load_batches
from evaluate.explainers import EXPLAINERS
from evaluate.head_pass import head_pass
from evaluate.protocols import frame_human_map, resize_saliency
from evaluate.ranks import average_ranks, spearman_from_ranks
from evaluate.subjects import Subject

Row = dict[str, Any]


@dataclass(frozen=True)
class RunOptions:
    """How a checkpoint is measured."""

    explainers: tuple[str, ...] = ("grad_cam", "threshold_grad_cam")
    protocols: tuple[str, ...] = ("paper",)
    batch_size: int = 32
    workers: int = 2
    bf16: bool = False
    """Features in bfloat16; the head and the maps stay float32."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: bool = True


def measure(subject: Subject, data: EvalData, indices: Sequence[int], options: RunOptions) -> Iterator[list[Row]]:
    """Rows of the images at `indices`, a list for each batch.

    A row holds `image_id`, `index`, `checkpoint`, `label`, `predicted`, `correct`, and, with human maps,
    `explainer`, `protocol`, `spearman` (None where a map is constant) and `degenerate`. One row an image x
    explainer x protocol; without human maps one row an image.

    Raises:
        UserError: the data set has other classes than the model, or an image cannot be read.
    """
    if data.num_classes != subject.num_classes:
        raise UserError(
            f"{subject.name} tells {subject.num_classes} classes apart, {data.name} has {data.num_classes}; "
            "evaluate it on the data it was trained for"
        )
    subject.to(options.device)
    batches = load_batches(data, subject.transform, indices, options.batch_size, options.workers)
    with tqdm(total=len(indices), desc=subject.name, unit="img", disable=not options.progress) as bar:
        for batch in batches:
            yield measure_batch(subject, data, batch, options)
            bar.update(len(batch.labels))


def measure_batch(subject: Subject, data: EvalData, batch: Batch, options: RunOptions) -> list[Row]:
    """Rows of one batch, see `measure`."""
    device = options.device
    pixels = batch.pixels.to(device, non_blocking=True)
    images = subject.transform.normalise(pixels).contiguous(memory_format=torch.channels_last)
    labels = batch.labels.to(device)
    passed = head_pass(subject.model, images, labels, options.bf16)
    predicted = passed.logits.argmax(1).tolist()
    common = [
        {
            "image_id": image_id,
            "index": index,
            "checkpoint": subject.name,
            "label": label,
            "predicted": guess,
            "correct": label == guess,
        }
        for image_id, index, label, guess in zip(
            batch.image_ids, batch.indices.tolist(), batch.labels.tolist(), predicted
        )
    ]
    if batch.human is None:
        return common

    human = data.human_maps(batch.human.to(device))
    seen = subject.transform.crop / subject.transform.resize
    human_ranks = {p: average_ranks(frame_human_map(human, seen, p).flatten(1)) for p in options.protocols}
    rows = []
    for explainer in options.explainers:
        saliency = resize_saliency(EXPLAINERS[explainer](passed.features, passed.gradients), human.shape[-1])
        ranks = average_ranks(saliency.flatten(1))
        for protocol in options.protocols:
            scores = spearman_from_ranks(ranks, human_ranks[protocol]).tolist()
            rows += [{**c, "explainer": explainer, "protocol": protocol, **_cell(s)} for c, s in zip(common, scores)]
    return rows


def _cell(score: float) -> Row:
    degenerate = score != score  # NaN: one of the two maps is constant
    return {"spearman": None if degenerate else score, "degenerate": degenerate}


def bf16_deviation(subject: Subject, data: EvalData, batch: Batch, options: RunOptions) -> dict[str, float]:
    """What bfloat16 features change on one batch: mean and largest absolute difference of Spearman to float32."""
    half, full = (
        [row["spearman"] for row in measure_batch(subject, data, batch, replace(options, bf16=bf16))]
        for bf16 in (True, False)
    )
    changes = torch.tensor([abs(a - b) for a, b in zip(half, full) if a is not None and b is not None])
    return {"mean": changes.mean().item(), "max": changes.max().item()} if len(changes) else {}


def saliency_of(subject: Subject, data: EvalData, batch: Batch, options: RunOptions) -> dict[str, Tensor]:
    """Maps of every asked explainer for a batch, (B, S, S) at the size of the model's view; for pictures."""
    pixels = batch.pixels.to(options.device)
    images = subject.transform.normalise(pixels).contiguous(memory_format=torch.channels_last)
    passed = head_pass(subject.model, images, batch.labels.to(options.device))
    size = pixels.shape[-1]
    return {
        name: resize_saliency(EXPLAINERS[name](passed.features, passed.gradients), size).cpu()
        for name in options.explainers
    }
