"""Measure one checkpoint: record -> features -> head -> maps -> rank correlation -> one row an image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

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


def measure(
    subject: Subject, data: EvalData, indices: Sequence[int], options: RunOptions
) -> Iterator[tuple[list[Row], int]]:
    """Rows of the images at `indices`, batch by batch, with the number of images.

    A row holds `image_id`, `index`, `checkpoint`, `label`, `predicted`, `correct`, and, with human maps,
    `explainer`, `protocol`, `spearman` (None where a map is constant), `degenerate` and `centre_spearman` (of a
    centred Gaussian instead of the model's map). One row an image x explainer x protocol; without human maps one
    row an image.

    Raises:
        UserError: the data set has other classes than the model, or an image cannot be read.
    """
    if data.num_classes != subject.num_classes:
        raise UserError(
            f"{subject.name} tells {subject.num_classes} classes apart, {data.name} has {data.num_classes}; "
            "evaluate it on the data it was trained for"
        )
    subject.to(options.device)
    for batch in load_batches(data, subject.transform, indices, options.batch_size, options.workers):
        yield measure_batch(subject, data, batch, options), len(batch.labels)


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
    centre_ranks = average_ranks(centre_map(human.shape[-1], device).flatten()[None])
    centre = {p: _values(spearman_from_ranks(centre_ranks.expand_as(r), r)) for p, r in human_ranks.items()}
    rows = []
    for explainer in options.explainers:
        saliency = resize_saliency(EXPLAINERS[explainer](passed.features, passed.gradients), human.shape[-1])
        ranks = average_ranks(saliency.flatten(1))
        for protocol in options.protocols:
            scores = _values(spearman_from_ranks(ranks, human_ranks[protocol]))
            rows += [
                {
                    **image,
                    "explainer": explainer,
                    "protocol": protocol,
                    "spearman": value,
                    "degenerate": value is None,
                    "centre_spearman": centred,
                }
                for image, value, centred in zip(common, scores, centre[protocol])
            ]
    return rows


def _values(correlations: Tensor) -> list[float | None]:
    """NaN, where one of the two maps is constant, becomes None."""
    return [None if math.isnan(value) else value for value in correlations.tolist()]


def centre_map(size: int, device: torch.device) -> Tensor:
    """The centre-bias baseline (size, size): the nearer to the middle, the higher.

    Its ranks are those of an isotropic Gaussian of any width; whole numbers keep its ties exact.
    """
    line = 2 * torch.arange(size, device=device) - (size - 1)
    return -(line[:, None] ** 2 + line**2)


def bf16_deviation(subject: Subject, data: EvalData, batch: Batch, options: RunOptions) -> dict[str, float]:
    """What bfloat16 features change on one batch: mean and largest absolute difference of Spearman to float32."""
    half, full = (
        [row["spearman"] for row in measure_batch(subject, data, batch, replace(options, bf16=bf16))]
        for bf16 in (True, False)
    )
    changes = torch.tensor([abs(a - b) for a, b in zip(half, full) if a is not None and b is not None])
    return {"mean": changes.mean().item(), "max": changes.max().item()} if len(changes) else {}


def saliency_of(subject: Subject, batch: Batch, options: RunOptions) -> dict[str, Tensor]:
    """Maps of every asked explainer for a batch, (B, S, S) at the size of the model's view; for pictures."""
    pixels = batch.pixels.to(options.device)
    images = subject.transform.normalise(pixels).contiguous(memory_format=torch.channels_last)
    passed = head_pass(subject.model, images, batch.labels.to(options.device))
    size = pixels.shape[-1]
    return {
        name: resize_saliency(EXPLAINERS[name](passed.features, passed.gradients), size).cpu()
        for name in options.explainers
    }
