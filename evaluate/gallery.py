"""The pictures of a report: which images are shown, and what each checkpoint makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from evaluate.data import Batch, EvalData, load_batches
from evaluate.explainers import MicroBatch
from evaluate.overlays import overlay, to_image
from evaluate.protocols import frame_human_map, resize_saliency
from evaluate.runner import RunOptions, saliency_of
from evaluate.statistics import Array, Group, GroupKey
from evaluate.subjects import Subject

PER_REASON = 3
SAMPLE = 9


@dataclass
class GalleryItem:
    """One image of the gallery."""

    index: int
    """Place in the data set."""
    reason: str
    """Why it is shown, such as `best`, `worst`, `largest gain`."""


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


def choose_gallery(groups: dict[GroupKey, Group], pairs: Sequence[tuple[str, str]] = ()) -> list[GalleryItem]:
    """Images that show the range: by the first score, and by the gain of the first pair; a sample without scores."""
    (first_key, first), *_ = groups.items()
    _, explainer, protocol = first_key
    scored = np.flatnonzero(~np.isnan(first.spearman)) if protocol else np.array([], int)
    if not len(scored):
        return [GalleryItem(int(index), "sample") for index in first.index[:SAMPLE]]
    order = scored[np.argsort(-first.spearman[scored], kind="stable")]
    middle = max(0, len(order) // 2 - PER_REASON // 2)
    chosen: dict[int, str] = {}
    _add(chosen, "best", first.index[order[:PER_REASON]])
    _add(chosen, "median", first.index[order[middle : middle + PER_REASON]])
    _add(chosen, "worst", first.index[order[-PER_REASON:]])
    for a, b in pairs[:1]:
        before, after = groups.get((a, explainer, protocol)), groups.get((b, explainer, protocol))
        if before is not None and after is not None:
            gain = after.spearman - before.spearman  # of one run: the same images in the same order
            known = np.flatnonzero(~np.isnan(gain))
            by_gain = known[np.argsort(-gain[known], kind="stable")]
            _add(chosen, f"largest gain of {b}", before.index[by_gain[:PER_REASON]])
            _add(chosen, f"largest loss of {b}", before.index[by_gain[::-1][:PER_REASON]])
    return [GalleryItem(index, reason) for index, reason in chosen.items()]


def _add(chosen: dict[int, str], reason: str, indices: Array) -> None:
    for index in indices:
        chosen.setdefault(int(index), reason)


def gallery_column(
    subject: Subject, data: EvalData, gallery: Sequence[GalleryItem], options: RunOptions
) -> GalleryColumn:
    """Pictures of one checkpoint: what it saw, the human map in its field of view, each explainer's overlay."""
    subject.to(options.device)
    indices = [item.index for item in gallery]
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
