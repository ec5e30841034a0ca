"""Evaluate checkpoint after checkpoint, chunk after chunk; what is finished is kept and found again."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.checkpoint import library_versions
from common.errors import UserError
from evaluate.data import EvalData, choose_indices, load_batches
from evaluate.explainers import parse_method
from evaluate.metrics import parse_measure
from evaluate.processes import Processes
from evaluate.results import PartStore, common_notes, merge_parts, schema_with, summed
from evaluate.runner import OTHER_HUMAN, Measured, RunOptions, bf16_deviation, measure
from evaluate.statistics import Group, GroupKey, collect
from evaluate.subjects import Subject, label_of, load_subject

CHUNK, SLOW_CHUNK = 2048, 32
"""Images of a part, what a killed run can lose: of the shared pass alone, and with methods of many passes."""
SAID_EVERY = 60
"""Seconds between lines of progress where no bar is drawn."""


def chunk_size(options: RunOptions) -> int:
    """Images of a part."""
    families = {parse_method(name)[0].family for name in options.explainers if name != OTHER_HUMAN}
    return SLOW_CHUNK if options.measures or families & {"perturbation", "optimisation"} else CHUNK


@dataclass(frozen=True)
class Request:
    """One checkpoint to be evaluated."""

    spec: str
    """What follows `--ckpt`."""
    model: str | None = None
    """Architecture of a weight file."""
    model_args: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    """In tables; None: see `evaluate.subjects.label_of`."""

    def load(self, seed: int, label: str) -> Subject:
        """Load the model under one of the names that `labels` gives."""
        subject = load_subject(self.spec, self.model, dict(self.model_args), seed)
        subject.name = label
        return subject


def labels(requests: Sequence[Request]) -> list[str]:
    """Names in tables; one that is taken gets a number, so that rows tell checkpoints apart."""
    found: list[str] = []
    for request in requests:
        name = label = request.name or label_of(request.spec, request.model)
        number = 2
        while label in found:
            label, number = f"{name} ({number})", number + 1
        found.append(label)
    return found


@dataclass
class Evaluation:
    """What a run found out; on the main process only."""

    data: EvalData
    partial: str
    """Why the scores are not those of the whole data set; empty if they are."""
    checkpoints: dict[str, dict[str, Any]]
    """What is known of each checkpoint, by its name in tables."""
    groups: dict[GroupKey, Group]


def evaluate_requests(
    requests: Sequence[Request],
    open_data: Callable[[Subject], EvalData],
    options: RunOptions,
    processes: Processes,
    out: Path,
    limit: int | None,
    seed: int,
) -> Evaluation:
    """Measure every request and write `per_image.parquet` into the folder `out`.

    Args:
        requests: at least one.
        open_data: the data set for a model (generated pictures follow its input size).
        options: how to measure.
        processes: each takes every n-th image.
        out: folder of results; finished chunks lie in its subfolder `parts`.
        limit: a seeded random subset of so many images, or None.
        seed: of the subset and of untrained weights.

    Raises:
        UserError: a checkpoint or an image cannot be read, or model and data do not fit.
    """
    checkpoints: dict[str, dict[str, Any]] = {}
    stores: list[PartStore] = []
    for request, label in zip(requests, labels(requests)):
        subject = request.load(seed, label)
        data = open_data(subject)
        indices = choose_indices(len(data), limit, seed).tolist()
        size = chunk_size(options)
        chunks = [indices[start : start + size] for start in range(0, len(indices), size)]
        digest = subject.weights_sha256 or state_digest(subject)
        question = _question(subject, digest, data, indices, options)
        subject.to(options.device)
        if options.compile:
            subject.compile()
        store = PartStore(
            out / "parts", subject.name, question, schema_with(options.measures, curves(options.measures))
        )
        _measure_chunks(subject, data, chunks, options, processes, store)
        stores.append(store)
        checkpoints[subject.name] = _describe(subject, digest)
        if processes.is_main:
            seconds = store.seconds(len(chunks))
            if not sys.stderr.isatty():  # where no bar was drawn
                print(f"{subject.name}: {len(indices)} images in {seconds:.0f} s", flush=True)
            checkpoints[subject.name] |= {
                "seconds": seconds,
                "images_per_second": len(indices) / max(seconds, 1e-9),
                "explainer_seconds": store.explainer_seconds(len(chunks)),
                "explainer_notes": store.notes(len(chunks)),
                "batch_size": options.batch_size,
                "threads": torch.get_num_threads(),
            }
            if options.bf16 and data.has_human_maps:
                checkpoints[subject.name]["bf16_deviation"] = _report_bf16(subject, data, indices, options)
    groups: dict[GroupKey, Group] = {}
    if processes.is_main:
        notes = common_notes({name: about["explainer_notes"] for name, about in checkpoints.items()})
        merge_parts(out / "per_image.parquet", stores, len(chunks), notes)
        for store in stores:
            groups |= collect(store.tables(len(chunks)), options.measures)
        if not groups:
            raise UserError(f"none of the {len(indices)} images of {data.name} could be read; see the list above")
    partial = _partial(data, len(indices), seed, next(iter(groups.values())) if groups else None)
    return Evaluation(data, partial, checkpoints, groups)


def _measure_chunks(
    subject: Subject,
    data: EvalData,
    chunks: Sequence[Sequence[int]],
    options: RunOptions,
    processes: Processes,
    store: PartStore,
) -> None:
    if processes.is_main:
        store.remove_others()
    finished = processes.from_main(store.finished(len(chunks)))
    total = sum(len(chunk) for chunk in chunks)
    shown = options.progress and processes.is_main
    with tqdm(total=total, desc=subject.name, unit="img", disable=None if shown else True) as bar:
        images_done, said = 0, time.monotonic()

        def done(images: int) -> None:
            nonlocal images_done, said
            images_done += images * processes.world
            bar.update(images * processes.world)
            if shown and bar.disable and time.monotonic() - said > SAID_EVERY:
                said = time.monotonic()
                print(f"{subject.name}: {min(images_done, total)} of {total} images", flush=True)

        for number, chunk in enumerate(chunks):
            if number in finished:
                bar.update(len(chunk))
                images_done += len(chunk)
                continue
            start = time.perf_counter()
            share = chunk[processes.rank :: processes.world]
            found = processes.gather(partial(_measure_share, subject, data, share, options, done))
            if processes.is_main:
                order = {index: place for place, index in enumerate(chunk)}
                batches = [batch for part, _ in found for batch in part]
                rows = sorted((row for batch in batches for row in batch.rows), key=lambda row: order[row["index"]])
                explainers = summed(batch.seconds for batch in batches)
                notes = {name: note for batch in batches for name, note in batch.notes.items()}
                left_out = [text for _, bad in found for text in bad]
                store.write(number, rows, time.perf_counter() - start, explainers, notes, left_out)
        bar.n = total
        bar.refresh()
    if not processes.is_main:
        return
    if bad := store.left_out(len(chunks)):
        print(f"{subject.name}: {len(bad)} images left out:\n  " + "\n  ".join(bad))
    if finished:
        print(f"{subject.name}: {len(finished)} of {len(chunks)} parts kept from an earlier start")


def _measure_share(
    subject: Subject, data: EvalData, share: Sequence[int], options: RunOptions, done: Callable[[int], None]
) -> list[tuple[list[Measured], list[str]]]:
    """This process's part of a chunk and what is wrong with images that were left out, as the one item of a list."""
    bad: list[str] = []
    batches: list[Measured] = []
    for batch in measure(subject, data, share, options, bad):
        batches.append(batch)
        done(batch.n_images)
    return [(batches, bad)]


def curves(measures: Sequence[str]) -> list[str]:
    """Those of some measures that keep more than a number an image."""
    return [name for name in measures if parse_measure(name)[0].has_curve]


def state_digest(subject: Subject) -> str:
    """SHA-256 of a model's weights, for models that come from no file."""
    digest = hashlib.sha256()
    for name, tensor in subject.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def code_digest() -> str:
    """Hash of the code that rows depend on, so that rows of other code are never mixed in."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted([*root.glob("evaluate/**/*.py"), *root.glob("common/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _question(
    subject: Subject, digest: str, data: EvalData, indices: Sequence[int], options: RunOptions
) -> dict[str, Any]:
    return {
        "weights": digest,
        "model": subject.model_name,
        "transform": str(subject.transform),
        "data": data.fingerprint(),
        "place": data.place,
        "chunk": chunk_size(options),
        "indices": hashlib.sha256(str(list(indices)).encode()).hexdigest(),
        "explainers": options.explainers,
        "layer": options.layer,
        "target": options.target,
        "protocols": options.protocols,
        "measures": options.measures,
        "bf16": options.bf16,
        "compile": options.compile,
        "device": options.device.type,
        "skip_bad": options.skip_bad,
        "versions": library_versions(),
        "code": code_digest(),
    }


def _describe(subject: Subject, digest: str) -> dict[str, Any]:
    return {
        "model": subject.model_name,
        "source": subject.source,
        "weights_sha256": digest,
        "num_params": subject.num_params,
        "transform": {"resize": subject.transform.resize, "crop": subject.transform.crop},
    }


def _report_bf16(subject: Subject, data: EvalData, indices: Sequence[int], options: RunOptions) -> dict[str, float]:
    skipped: list[str] | None = [] if options.skip_bad else None
    first = indices[: options.batch_size]
    batch = next(load_batches(data, subject.transform, first, options.batch_size, 0, skipped), None)
    if batch is None:
        return {}
    deviation = bf16_deviation(subject, data, batch, options)
    if deviation:
        print(
            f"{subject.name}: bf16 features change Spearman by {deviation['mean']:.1e} on average, at most "
            f"{deviation['max']:.1e} (first {len(batch.labels)} images, against fp32)"
        )
    return deviation


def _partial(data: EvalData, count: int, seed: int, group: Group | None) -> str:
    reasons = []
    if group is not None and len(group.index) < count:
        reasons.append(f"{count - len(group.index)} images could not be read (--skip-bad)")
    if count < len(data):
        reasons.append(f"{count} of {len(data)} images (--limit, seed {seed})")
    if data.missing_parts:
        reasons.append(data.missing_parts)
    return "; ".join(reasons)
