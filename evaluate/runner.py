"""Measure one checkpoint: record -> features -> head -> maps -> rank correlation -> one row an image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.errors import UserError
from evaluate.data import Batch, EvalData, in_batches, read_batches
from evaluate.explainers import MicroBatch
from evaluate.explainers.micro_batch import is_out_of_memory
from evaluate.explanation import Maps, explain
from evaluate.metrics import Case, measure_case
from evaluate.metrics.alignment import dice_of, iou_of, top_share
from evaluate.protocols import frame_human_map, resize_saliency
from evaluate.ranks import average_ranks, spearman_from_ranks
from evaluate.subjects import Subject

Row = dict[str, Any]

SHARED_PASS = "shared pass"
"""Beside the names of explainers: the pass at the layer that they share."""

OTHER_HUMAN = "other_human"
"""The baseline that knows where people look, but in another image: the human map of the data set's next one."""


@dataclass(frozen=True)
class RunOptions:
    """How a checkpoint is measured."""

    explainers: tuple[str, ...] = ("grad_cam", "threshold_grad_cam")
    """Each `NAME` or `NAME:KEY=VALUE,...`, see `evaluate.explainers`, or the baseline `OTHER_HUMAN`."""
    protocols: tuple[str, ...] = ("paper",)
    measures: tuple[str, ...] = ()
    """Further measures of every explainer, see `evaluate.metrics`; they do not depend on the protocol."""
    batch_size: int = 32
    workers: int = 2
    bf16: bool = False
    """Features in bfloat16; the head and the maps stay float32."""
    compile: bool = False
    """Forward passes through `torch.compile`; layers named to be explained run as written."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    micro_batch: MicroBatch | None = None
    """Images at once where a method needs many forward passes; None: adapts to memory."""
    progress: bool = True
    skip_bad: bool = False
    """Leave out pictures that cannot be read instead of stopping."""
    layer: str | None = None
    """Name of the explained module; None: the last feature map."""
    target: str = "label"
    """The class that is explained: the image's `label`, or the one that is `predicted`."""


class Unmeasurable(UserError):
    """One checkpoint cannot be measured as asked; others may be."""


class Measured(NamedTuple):
    """What one batch gave."""

    rows: list[Row]
    n_images: int
    seconds: dict[str, float]
    """Wall time of each explainer's own part and, under `SHARED_PASS`, of what they share."""
    notes: dict[str, str]
    """By explainer, what a reader of its results must know, see `evaluate.explanation.Maps`."""
    bad: Sequence[str] = ()
    """What is wrong with images that were left out, see `RunOptions.skip_bad`."""


def measure(subject: Subject, data: EvalData, indices: Sequence[int], options: RunOptions) -> Iterator[Measured]:
    """Rows of the images at `indices`, batch by batch, see `measure_batches`."""
    return measure_batches(subject, data, in_batches(indices, options.batch_size), options)


def measure_batches(
    subject: Subject, data: EvalData, batches: Sequence[list[int]], options: RunOptions
) -> Iterator[Measured]:
    """Rows of batches of images, with the number of images and the time of the explainers; one loader reads them all.

    A row holds `image_id`, `index`, `checkpoint`, `label`, `predicted`, `correct`; of each explainer `explainer`
    and the measures asked for; with human maps, for each protocol, `protocol`, `spearman` (None where a map is
    constant), `degenerate`, `dice` and `iou` (of the top 10 %) and `centre_spearman` (of a centred Gaussian instead
    of the model's map). Without human maps and measures an image has one row.

    The subject must be on the options' device, and have as many classes as the data set.

    Args:
        subject: the model.
        data: where the images are.
        batches: places in the data set. Where memory runs out, a batch is measured in halves, and so are later ones.
        options: how to measure.

    Raises:
        UserError: an image cannot be read.
        Unmeasurable: an explainer or a measure does not fit the model, or not even one image fits into memory.
    """
    fitting = MicroBatch(options.batch_size, options.device)
    for batch, bad in read_batches(data, subject.transform, batches, options.workers):
        if bad and not options.skip_bad:
            raise UserError(bad[0])
        found = Measured([], 0, {}, {}) if batch is None else measure_fitting(subject, data, batch, options, fitting)
        yield found._replace(bad=bad)


def measure_fitting(
    subject: Subject, data: EvalData, batch: Batch, options: RunOptions, fitting: MicroBatch
) -> Measured:
    """Measure one batch, so many images at once as `fitting` has found to fit into memory."""
    try:
        found = fitting.pieces(len(batch), lambda rows: measure_batch(subject, data, batch.part(rows), options))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise Unmeasurable(
            f"not even one image at a time fits into the memory of {options.device}; take another --device, or "
            "fewer explainers and measures"
        ) from error
    rows = [row for part in found for row in part.rows]
    notes = {name: note for part in found for name, note in part.notes.items()}
    return Measured(rows, len(batch), summed(part.seconds for part in found), notes)


def summed(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sum of each entry over mappings."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


@contextmanager
def _blaming_the_checkpoint() -> Iterator[None]:
    """What is wrong within the block concerns this model only."""
    try:
        yield
    except UserError as error:
        raise Unmeasurable(str(error)) from error


def measure_batch(subject: Subject, data: EvalData, batch: Batch, options: RunOptions) -> Measured:
    """Measure one batch, see `measure_batches`."""
    device = options.device
    pixels = batch.pixels.to(device, non_blocking=True)
    images = subject.transform.normalise(pixels).contiguous(memory_format=torch.channels_last)
    explained = batch.human is not None or options.measures
    methods = [name for name in options.explainers if name != OTHER_HUMAN] if explained else []
    asked = _asked_classes(batch, options)
    with _blaming_the_checkpoint():
        maps = _explain(subject, subject.model, images, asked, batch, methods, options)
        _check_logits(maps.logits, batch)
    targets = maps.logits.argmax(1) if asked is None else asked
    known = zip(batch.image_ids, batch.indices.tolist(), batch.labels.tolist(), maps.logits.argmax(1).tolist())
    rows = [
        {"image_id": i, "index": n, "checkpoint": subject.name, "label": t, "predicted": p, "correct": t == p}
        for i, n, t, p in known
    ]
    if not explained:
        return Measured(rows, len(rows), {}, {})
    human = None if batch.human is None else HumanMaps(data.human_maps(batch.human.to(device)), subject, options)
    alone = False
    if OTHER_HUMAN in options.explainers:
        others = _other_human_maps(data, batch, device, options.skip_bad)
        alone = others is None
        maps[OTHER_HUMAN] = torch.zeros(len(rows), 1, 1, device=device) if others is None else others
    out: list[Row] = []
    case: Case | None = None
    for explainer in options.explainers:
        constant = maps.degenerate.get(explainer)
        columns: dict[str, list[Any]] = {
            "explainer": [explainer] * len(rows),
            "degenerate": [None] * len(rows) if constant is None else constant.tolist(),
        }
        if options.measures:
            case = _case(subject, images, targets, batch, human, maps, explainer, options, case)
            with _blaming_the_checkpoint():
                columns |= _measured(case, options)
        for aligned in [{}] if human is None else human.columns(maps[explainer]):
            both = columns | aligned
            out += [{**row, **{name: values[n] for name, values in both.items()}} for n, row in enumerate(rows)]
    if alone:
        maps.notes[OTHER_HUMAN] = "no score, as there is no other image with a human map"
        out = [_without_score(row) if row["explainer"] == OTHER_HUMAN else row for row in out]
    return Measured(out, len(rows), {SHARED_PASS: maps.shared_seconds, **maps.seconds}, maps.notes)


def _check_logits(logits: Tensor, batch: Batch) -> None:
    """An image whose logits are not finite has no predicted class and no gradient: the network is at fault."""
    finite = logits.isfinite().all(1).tolist()
    if not all(finite):
        image = batch.image_ids[finite.index(False)]
        raise UserError(f"its logits of image {image} are not finite, so it is not scored")


def _without_score(row: Row) -> Row:
    """What is known of an image without a map."""
    known = ("image_id", "index", "checkpoint", "label", "predicted", "correct", "explainer", "protocol")
    return {name: value if name in known else None for name, value in row.items()}


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
        centre = _centre_ranks(self.size, human.device)
        self.centre = {p: _values(spearman_from_ranks(centre.expand_as(r), r)) for p, r in self.ranks.items()}

    def columns(self, saliency: Tensor) -> Iterator[dict[str, list[Any]]]:
        """Columns of (B, h, w) maps for each protocol."""
        values = resize_saliency(saliency, self.size).flatten(1)
        ranks, top = average_ranks(values), top_share(values, 10)
        for protocol, human_ranks in self.ranks.items():
            spearman = _values(spearman_from_ranks(ranks, human_ranks))
            yield {
                "protocol": [protocol] * len(spearman),
                "spearman": spearman,
                "degenerate": [value is None for value in spearman],  # either map, ours or the human one
                "dice": dice_of(top, self.tops[protocol]).tolist(),
                "iou": iou_of(top, self.tops[protocol]).tolist(),
                "centre_spearman": self.centre[protocol],
            }


def _other_human_maps(data: EvalData, batch: Batch, device: torch.device, skip_bad: bool) -> Tensor | None:
    """None where no other image can be read."""
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


def _asked_classes(batch: Batch, options: RunOptions) -> Tensor | None:
    """(B,) classes to be explained; None: those the model predicts."""
    return batch.labels.to(options.device) if options.target == "label" else None


def _explain(
    subject: Subject,
    model: nn.Module,
    images: Tensor,
    targets: Tensor | None,
    batch: Batch,
    methods: Sequence[str],
    options: RunOptions,
) -> Maps:
    """Maps of a batch's images, or of what became of them, by the subject's model, or what became of it.

    `targets` are classes (B,), or None: those it predicts.
    """
    return explain(
        model,
        images,
        targets,
        methods,
        layer=options.layer,
        size="own",
        transform=subject.transform,
        micro_batch=options.micro_batch,
        bf16=options.bf16,
        image_keys=batch.indices.tolist(),
    )


def _case(
    subject: Subject,
    images: Tensor,
    targets: Tensor,
    batch: Batch,
    human: HumanMaps | None,
    maps: Maps,
    explainer: str,
    options: RunOptions,
    like: Case | None,
) -> Case:
    """What the measures of one explainer look at; `like`, the batch's case of another, has the logits already."""
    size = images.shape[-1]

    def explain_again(model: nn.Module, changed: Tensor) -> Tensor:
        if explainer == OTHER_HUMAN:
            return maps[OTHER_HUMAN]
        return _explain(subject, model, changed, targets, batch, [explainer], options)[explainer]

    if like is not None:
        return like.under(maps[explainer], explain_again)
    return Case(
        subject.model,
        images,
        maps[explainer],
        targets,
        transform=subject.transform,
        labels=batch.labels,
        human=None if human is None else resize_saliency(human.aligned, size),
        boxes=batch.boxes,
        explain=explain_again,
        micro_batch=options.micro_batch,
        bf16=options.bf16,
        image_keys=batch.indices.tolist(),
    )


def _measured(case: Case, options: RunOptions) -> dict[str, list[Any]]:
    """Columns of the measures of one explainer: a value an image, and the curve where a measure has one."""
    columns: dict[str, list[Any]] = {}
    for name, result in measure_case(case, options.measures).items():
        columns[name] = _values(result.values.double())
        if result.detail.ndim > 1:
            columns[f"{name} detail"] = result.detail.double().flatten(1).tolist()
    return columns


def _values(values: Tensor) -> list[float | None]:
    """NaN, where a measure is not defined, becomes None."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def centre_map(size: int, device: torch.device) -> Tensor:
    """The centre-bias baseline (size, size): the nearer to the middle, the higher.

    Its ranks are those of an isotropic Gaussian of any width; whole numbers keep its ties exact.
    """
    line = 2 * torch.arange(size, device=device) - (size - 1)
    return -(line[:, None] ** 2 + line**2)


@lru_cache(maxsize=1)
def _centre_ranks(size: int, device: torch.device) -> Tensor:
    """(1, size * size), the same in every batch."""
    return average_ranks(centre_map(size, device).flatten()[None])


def bf16_deviation(subject: Subject, data: EvalData, batch: Batch, options: RunOptions) -> dict[str, float]:
    """What bfloat16 features change on one batch: mean and largest absolute difference of Spearman to float32."""
    fitting = MicroBatch(options.batch_size, options.device)
    half, full = (
        [row["spearman"] for row in measure_fitting(subject, data, batch, replace(options, bf16=bf16), fitting).rows]
        for bf16 in (True, False)
    )
    changes = torch.tensor([abs(a - b) for a, b in zip(half, full) if a is not None and b is not None])
    return {"mean": changes.mean().item(), "max": changes.max().item()} if len(changes) else {}


def saliency_of(subject: Subject, batch: Batch, options: RunOptions) -> dict[str, Tensor]:
    """Maps of every asked explainer for a batch, (B, S, S) at the size of the model's view; for pictures."""
    pixels = batch.pixels.to(options.device)
    images = subject.transform.normalise(pixels).contiguous(memory_format=torch.channels_last)
    methods = [name for name in options.explainers if name != OTHER_HUMAN]
    maps = _explain(subject, subject.model, images, _asked_classes(batch, options), batch, methods, options)
    return {name: resize_saliency(saliency, images.shape[-1]).cpu() for name, saliency in maps.items()}
