"""Measure one checkpoint: record -> features -> head -> maps -> rank correlation -> one row per image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.errors import UserError
from evaluate.data.interface import Batch, EvalData
from evaluate.data.loader import in_batches, read_batches
from evaluate.explainers.explain import Maps, explain
from evaluate.explainers.explainer import Explainer
from evaluate.maps.arithmetic import resize_saliency
from evaluate.metrics.case import Case
from evaluate.metrics.registry import measure_case
from evaluate.named import Chosen
from evaluate.network.micro_batch import MicroBatch, is_out_of_memory
from evaluate.network.subject import Subject
from evaluate.rows import SHARED_PASS, Row, detail_column
from evaluate.run.alignment import HumanMaps, none_for_nan, other_human_maps
from evaluate.run.options import RunOptions


class Unmeasurable(UserError):
    """One checkpoint cannot be measured as asked; others may be."""


class Measured(NamedTuple):
    """What one batch gave."""

    rows: list[Row]
    n_images: int
    seconds: dict[str, float]
    """Wall time of each explainer's own part and, under `SHARED_PASS`, of what they share."""
    notes: dict[str, str]
    """By explainer, what a reader of its results must know, see `evaluate.explainers.explain.Maps`."""
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
    images = subject.see(batch.pixels.to(device, non_blocking=True))
    explained = batch.human is not None or options.measures
    asked, explainers = asked_classes(batch, options), options.explainers if explained else {}
    others, alone = _other_human(data, batch, options) if explained else (None, ())
    with _blaming_the_checkpoint():
        maps = explain_batch(subject, subject.model, images, asked, batch, explainers, options, others)
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
    out: list[Row] = []
    case: Case | None = None
    for explainer in explainers:
        columns: dict[str, list[Any]] = {
            "explainer": [explainer] * len(rows),
            "degenerate": maps.degenerate[explainer].tolist(),
        }
        if options.measures:
            case = _case(subject, images, targets, batch, human, others, maps, explainer, options, case)
            with _blaming_the_checkpoint():
                columns |= _measured(case, options)
        for aligned in [{}] if human is None else human.columns(maps[explainer]):
            both = columns | aligned
            out += [{**row, **{name: values[n] for name, values in both.items()}} for n, row in enumerate(rows)]
    maps.notes |= dict.fromkeys(alone, "no score, as there is no other image with a human map")
    out = [_without_score(row) if row["explainer"] in alone else row for row in out]
    return Measured(out, len(rows), {SHARED_PASS: maps.shared_seconds, **maps.seconds}, maps.notes)


def _other_human(data: EvalData, batch: Batch, options: RunOptions) -> tuple[Tensor | None, Sequence[str]]:
    """Human maps of other images where explainers need them, and those explainers for which there is no other image."""
    needing = [label for label, chosen in options.explainers.items() if "human" in chosen.entry.needs]
    if not needing:
        return None, ()
    others = other_human_maps(data, batch, options.device, options.skip_bad)
    return (torch.zeros(len(batch), 1, 1, device=options.device), needing) if others is None else (others, ())


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


def asked_classes(batch: Batch, options: RunOptions) -> Tensor | None:
    """(B,) classes to be explained; None: those the model predicts."""
    return batch.labels.to(options.device) if options.target == "label" else None


def explain_batch(
    subject: Subject,
    model: nn.Module,
    images: Tensor,
    targets: Tensor | None,
    batch: Batch,
    explainers: Mapping[str, Chosen[Explainer]],
    options: RunOptions,
    others: Tensor | None = None,
) -> Maps:
    """Maps for the (possibly perturbed) images of a batch by the subject's (possibly randomised) model.

    `targets` are classes (B,), or None: those it predicts; `others` human maps of other images (B, S, S).
    """
    return explain(
        model,
        images,
        targets,
        explainers,
        layer=options.layer,
        size="own",
        transform=subject.transform,
        micro_batch=options.micro_batch,
        bf16=options.bf16,
        image_keys=batch.indices.tolist(),
        other_human=others,
    )


def _case(
    subject: Subject,
    images: Tensor,
    targets: Tensor,
    batch: Batch,
    human: HumanMaps | None,
    others: Tensor | None,
    maps: Maps,
    explainer: str,
    options: RunOptions,
    like: Case | None,
) -> Case:
    """What the measures of one explainer look at; `like`, the batch's case of another, has the logits already."""
    size = images.shape[-1]

    def explain_again(model: nn.Module, changed: Tensor) -> Tensor:
        chosen = {explainer: options.explainers[explainer]}
        return explain_batch(subject, model, changed, targets, batch, chosen, options, others)[explainer]

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
        columns[name] = none_for_nan(result.values.double())
        if result.detail.ndim > 1:
            columns[detail_column(name)] = result.detail.double().flatten(1).tolist()
    return columns


def bf16_deviation(subject: Subject, data: EvalData, batch: Batch, options: RunOptions) -> dict[str, float]:
    """What bfloat16 features change on one batch: mean and largest absolute difference of Spearman to float32."""
    fitting = MicroBatch(options.batch_size, options.device)
    half, full = (
        [row["spearman"] for row in measure_fitting(subject, data, batch, replace(options, bf16=bf16), fitting).rows]
        for bf16 in (True, False)
    )
    changes = torch.tensor([abs(a - b) for a, b in zip(half, full) if a is not None and b is not None])
    return {"mean": changes.mean().item(), "max": changes.max().item()} if len(changes) else {}
