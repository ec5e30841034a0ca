"""Evaluate checkpoint after checkpoint, part after part; finished parts are kept and found again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from common.errors import UserError
from evaluate.data.interface import EvalData
from evaluate.data.loader import in_batches, read_batches
from evaluate.network.requests import Checkpoints
from evaluate.network.subject import Subject
from evaluate.rows import MeasuredFacts, common_notes, table_schema
from evaluate.run.identity import chunk_size, part_question
from evaluate.run.measure import Measured, Unmeasurable, bf16_deviation, measure_batches, summed
from evaluate.run.options import RunOptions
from evaluate.run.parts import PartStore, merge_parts, remove_stale
from evaluate.run.preflight import Plan
from evaluate.run.processes import Processes

SAID_EVERY = 60
"""Seconds between lines of progress where no bar is drawn."""


@dataclass
class Evaluation:
    """What a run found out; on the main process only, but for `failed`."""

    data: EvalData
    partial: str
    """Why the scores are not those of the whole data set; empty if they are."""
    checkpoints: dict[str, MeasuredFacts]
    """What is known of each checkpoint that was measured, by its name in tables."""
    stores: list[PartStore]
    """Their rows, checkpoint by checkpoint."""
    failed: list[str]
    """Checkpoints that could not be measured, and why."""


def evaluate_plans(
    checkpoints: Checkpoints, plans: Sequence[Plan], options: RunOptions, processes: Processes, out: Path, seed: int
) -> Evaluation:
    """Measure every checkpoint and write `per_image.parquet` into the folder `out`.

    Args:
        checkpoints: of the run.
        plans: for each of them, at least one.
        options: of the whole run.
        processes: each takes every n-th image.
        out: folder of results; finished parts lie in its subfolder `parts`.
        seed: of the subset, to be told.

    Raises:
        UserError: an image cannot be read, or no checkpoint could be measured.
    """
    schema = table_schema(list(options.measures), curves(options))
    stores = [
        PartStore(out / "parts", plan.name, part_question(plan, schema.names), _parts(plan), schema) for plan in plans
    ]
    if processes.is_main:
        remove_stale(stores)
    measured: list[tuple[Plan, PartStore]] = []
    known: dict[str, MeasuredFacts] = {}
    failed: list[str] = []
    for plan, store in zip(plans, stores):
        try:
            with checkpoints.on(plan.name, options.device, options.compile) as subject:
                _measure_parts(subject, plan, processes, store)
                if processes.is_main:
                    known[plan.name] = _measured_facts(subject, plan, store)
        except Unmeasurable as error:
            failed.append(f"{plan.name}: {error}")
        else:
            measured.append((plan, store))
    if not measured:
        raise UserError("\n  ".join(failed))
    first, rows = measured[0]
    left_out = 0
    if processes.is_main:
        notes = common_notes({name: about.explainer_notes for name, about in known.items()})
        merge_parts(out / "per_image.parquet", [store for _, store in measured], notes)
        if all(len(store.left_out()) == len(plan.indices) for plan, store in measured):
            raise UserError(
                f"none of the {len(first.indices)} images of {first.data.name} could be read; see the list above"
            )
        left_out = len(rows.left_out())
    why_partial = _partial(first.data, len(first.indices), seed, left_out)
    return Evaluation(first.data, why_partial, known, [store for _, store in measured], failed)


def _parts(plan: Plan) -> list[list[int]]:
    return in_batches(plan.indices, chunk_size(plan.options))


def _measure_parts(subject: Subject, plan: Plan, processes: Processes, store: PartStore) -> None:
    """Measure the parts that are not there yet, whose images one loader of each process reads."""
    options, parts = plan.options, store.parts
    readable = partial(_readable, plan.data) if options.skip_bad else lambda index: True  # told when it is read
    finished = processes.from_main(store.finished(readable) if processes.is_main else [])
    left = [number for number in range(len(parts)) if number not in finished]
    shares = [in_batches(parts[number][processes.rank :: processes.world], options.batch_size) for number in left]
    stream = measure_batches(subject, plan.data, [batch for share in shares for batch in share], options)
    shown = options.progress and processes.is_main
    with Progress(plan.name, len(plan.indices), shown) as progress:
        progress.add(sum(len(parts[number]) for number in finished))  # of which nothing is read
        for number, share in zip(left, shares):
            start = time.perf_counter()
            batches = processes.gather(partial(_take, stream, len(share), progress, processes.world))
            if processes.is_main:
                order = {index: place for place, index in enumerate(parts[number])}
                rows = sorted((row for batch in batches for row in batch.rows), key=lambda row: order[row["index"]])
                left_out = [text for batch in batches for text in batch.bad]
                seconds = summed(batch.seconds for batch in batches)
                notes = {name: note for batch in batches for name, note in batch.notes.items()}
                store.write(number, rows, time.perf_counter() - start, seconds, notes, left_out)
    if not processes.is_main:
        return
    if bad := store.left_out():
        print(f"{plan.name}: {len(bad)} images left out:\n  " + "\n  ".join(bad))
    if finished:
        print(f"{plan.name}: {len(finished)} of {len(parts)} parts kept from an earlier start")


def _readable(data: EvalData, index: int) -> bool:
    try:
        data.picture(index)
    except UserError:
        return False
    return True


def _take(stream: Iterator[Measured], count: int, progress: Progress, world: int) -> list[Measured]:
    """The next batches of this process; the others are taken to be as far."""
    taken = []
    for batch in islice(stream, count):
        taken.append(batch)
        progress.add((batch.n_images + len(batch.bad)) * world)
    return taken


class Progress:
    """A bar of images; where none can be drawn, a line now and then."""

    def __init__(self, name: str, total: int, shown: bool) -> None:
        self.bar = tqdm(total=total, desc=name, unit="img", disable=None if shown else True)
        self.name, self.total, self.shown = name, total, shown
        self.done, self.said = 0, time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.bar.n = self.total
        self.bar.close()

    def add(self, images: int) -> None:
        """So many images more are done."""
        self.done = min(self.done + images, self.total)
        self.bar.n = self.done
        self.bar.update(0)
        if self.shown and self.bar.disable and time.monotonic() - self.said > SAID_EVERY:
            self.said = time.monotonic()
            print(f"{self.name}: {self.done} of {self.total} images", flush=True)


def _measured_facts(subject: Subject, plan: Plan, store: PartStore) -> MeasuredFacts:
    """What is known of a checkpoint once its parts are finished."""
    seconds, left_out = store.seconds(), len(store.left_out())
    images = len(plan.indices) - left_out
    if not sys.stderr.isatty():  # where no bar was drawn
        print(
            f"{plan.name}: {images} images in {seconds:.0f} s" + f", {left_out} left out" * bool(left_out), flush=True
        )
    return MeasuredFacts(
        **vars(plan.facts),
        seconds=seconds,
        images_per_second=images / max(seconds, 1e-9),
        explainer_seconds=store.explainer_seconds(),
        explainer_notes=store.notes(),
        batch_size=plan.options.batch_size,
        threads=torch.get_num_threads(),
        bf16_deviation=_bf16_deviation(subject, plan),
    )


def curves(options: RunOptions) -> list[str]:
    """The metrics that keep a curve per image."""
    return [label for label, chosen in options.measures.items() if chosen.entry.has_curve]


def _bf16_deviation(subject: Subject, plan: Plan) -> dict[str, float] | None:
    """What features in bfloat16 change on the first images; None where they were not asked for."""
    if not (plan.options.bf16 and plan.data.has_human_maps):
        return None
    first = in_batches(plan.indices[: plan.options.batch_size], plan.options.batch_size)
    batch, _ = next(read_batches(plan.data, subject.transform, first, 0))
    deviation = {} if batch is None else bf16_deviation(subject, plan.data, batch, plan.options)
    if batch is not None and deviation:
        print(
            f"{plan.name}: bf16 features change Spearman by {deviation['mean']:.1e} on average, at most "
            f"{deviation['max']:.1e} (first {len(batch)} images, against fp32)"
        )
    return deviation


def _partial(data: EvalData, count: int, seed: int, left_out: int) -> str:
    reasons = []
    if left_out:
        reasons.append(f"{left_out} images could not be read (--skip-bad)")
    if count < len(data):
        reasons.append(f"{count} of {len(data)} images (--limit, seed {seed})")
    if data.missing_parts:
        reasons.append(data.missing_parts)
    return "; ".join(reasons)
