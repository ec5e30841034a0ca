"""The maps and overlays of the images that a report shows, for each checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image
from torch import Tensor

from evaluate.data.interface import Batch, EvalData
from evaluate.data.loader import load_batches
from evaluate.maps.arithmetic import resize_saliency
from evaluate.maps.frames import frame_human_map
from evaluate.maps.overlays import overlay, to_image
from evaluate.network.micro_batch import MicroBatch
from evaluate.network.subject import Subject
from evaluate.run.measure import asked_classes, explain_batch
from evaluate.run.options import RunOptions


@dataclass
class GalleryColumn:
    """One checkpoint's pictures of the gallery's images."""

    checkpoint: str
    geometry: str
    """Names the transform; columns of one geometry show the same picture and human map."""
    pictures: list[Image.Image]
    """What this model saw."""
    human: list[Image.Image] | None
    """Human map in its field of view, over the picture."""
    maps: dict[str, list[Image.Image]]
    """Overlays by explainer."""
    labels: list[str]
    """Name of each image's class."""


def gallery_column(subject: Subject, data: EvalData, indices: Sequence[int], options: RunOptions) -> GalleryColumn:
    """One checkpoint's pictures of the images at `indices`: what it saw, human map, overlays."""
    subject.to(options.device)
    column = GalleryColumn(
        subject.name,
        f"{subject.transform.resize}-{subject.transform.crop}",
        [],
        [] if data.has_human_maps else None,
        {},
        [],
    )
    fitting = MicroBatch(options.batch_size, options.device)
    for batch in load_batches(data, subject.transform, indices, options.batch_size, 0):
        fitting.pieces(len(batch), partial(_add_images, column, subject, data, batch, options))
    return column


def _add_images(
    column: GalleryColumn, subject: Subject, data: EvalData, whole: Batch, options: RunOptions, rows: slice
) -> None:
    """Add some images of a batch."""
    batch = whole.part(rows)
    maps = saliency_of(subject, batch, options)  # first, as memory may run out
    column.pictures += [to_image(pixels) for pixels in batch.pixels]
    column.labels += [data.class_names[n] if data.class_names else str(n) for n in batch.labels.tolist()]
    for name, values in maps.items():
        column.maps.setdefault(name, []).extend(overlay(p, m) for p, m in zip(batch.pixels, values))
    if column.human is not None and batch.human is not None:
        size, seen = batch.pixels.shape[-1], subject.transform.crop / subject.transform.resize
        human = frame_human_map(data.human_maps(batch.human), seen, "aligned")
        column.human += [overlay(p, m) for p, m in zip(batch.pixels, resize_saliency(human, size))]


def saliency_of(subject: Subject, batch: Batch, options: RunOptions) -> dict[str, Tensor]:
    """Maps of every asked explainer for a batch, (B, S, S) at the size of the model's view; for pictures."""
    images = subject.see(batch.pixels.to(options.device))
    asked = asked_classes(batch, options)
    maps = explain_batch(subject, subject.model, images, asked, batch, options.from_images, options)
    return {name: resize_saliency(saliency, images.shape[-1]).cpu() for name, saliency in maps.items()}
