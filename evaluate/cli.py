"""The command `python -m evaluate`: options, then checkpoint by checkpoint, then the results."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shlex
import sys
import time
from ast import literal_eval
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from common.checkpoint import library_versions
from common.errors import UserError
from evaluate.data import ClickMeData, EvalData, FolderData, ScenesData, choose_indices, load_batches
from evaluate.explainers import EXPLAINERS
from evaluate.protocols import PROTOCOLS
from evaluate.report import choose_gallery, gallery_column, write_report
from evaluate.results import make_scores, score_table, write_results
from evaluate.runner import Row, RunOptions, bf16_deviation, measure
from evaluate.subjects import Subject, load_subject

DATA_SETS = ("clickme", "scenes", "imagefolder")


def parser() -> argparse.ArgumentParser:
    """The options of `python -m evaluate`."""
    p = argparse.ArgumentParser(prog="python -m evaluate", description="Measure how human a checkpoint's attention is.")
    p.add_argument(
        "--ckpt",
        nargs="+",
        required=True,
        metavar="CKPT",
        help=(
            "folder written by train; .pth/.pth.tar/.safetensors file (with --model); timm:TAG; hf-hub:ORG/NAME; "
            "untrained (with --model): random weights as a baseline"
        ),
    )
    p.add_argument("--model", help="architecture of a weight file: a zoo name such as convnext_t_dcls, or timm:NAME")
    p.add_argument("--model-arg", action="append", default=[], metavar="KEY=VALUE", help="of --model; repeatable")
    p.add_argument("--data", choices=DATA_SETS, default="clickme")
    p.add_argument("--data-root", type=Path, help="folder of the data set (not for scenes)")
    p.add_argument("--labels", type=Path, help="imagefolder: CSV with columns file, label (no class folders)")
    p.add_argument("--explainer", nargs="+", choices=list(EXPLAINERS), default=["grad_cam", "threshold_grad_cam"])
    p.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=["paper"])
    p.add_argument("--out", type=Path, default=Path("results/latest"), help="folder of results (%(default)s)")
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--workers", type=int, default=2, help="processes that read pictures")
    p.add_argument("--limit", type=int, help="a seeded random subset of so many images; scores are marked partial")
    p.add_argument("--seed", type=int, default=0, help="of --limit, the bootstrap and untrained weights")
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the features; the head is fp32")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate what the command line asks for; returns 0.

    Raises:
        UserError: what was asked for cannot be done.
    """
    args = parser().parse_args(argv)
    _check(args)
    state = _processes(args.device)
    options = RunOptions(
        tuple(dict.fromkeys(args.explainer)),
        tuple(dict.fromkeys(args.protocol)),
        args.batch_size,
        args.workers,
        args.precision == "bf16",
        state.device,
        state.is_main,
    )
    rows: list[Row] = []
    checkpoints: dict[str, dict[str, Any]] = {}
    for spec in args.ckpt:
        subject = _load(args, spec, checkpoints)
        data = _open_data(args, subject)
        indices = choose_indices(len(data), args.limit, args.seed).tolist()
        start = time.perf_counter()
        mine = _measure_share(subject, data, indices[state.rank :: state.world], options, state)
        rows += sorted(mine, key=lambda row: row["index"])
        checkpoints[subject.name] = _describe(subject, time.perf_counter() - start, len(indices))
        if options.bf16 and data.has_human_maps and state.is_main:
            checkpoints[subject.name]["bf16_deviation"] = _report_bf16(subject, data, indices, options)
    if state.is_main:
        _finish(args, options, data, indices, rows, checkpoints, state.world)
    return 0


@dataclass
class _Processes:
    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def _processes(device: str) -> _Processes:
    """This process among those a launcher started; the process group is made only when there are several."""
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        state = PartialState(cpu=not on_gpu)
        return _Processes(state.process_index, state.num_processes, state.device)
    return _Processes(0, 1, torch.device("cuda" if on_gpu else "cpu"))


def _check(args: argparse.Namespace) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine shows torch no GPU; take --device cpu or auto")
    for name in ("limit", "batch_size"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if args.data != "scenes" and args.data_root is None:
        layout = "val-0.tfrecords ... val-16.tfrecords" if args.data == "clickme" else "class folders of pictures"
        raise UserError(f"--data {args.data} needs --data-root DIR, the folder that holds {layout}")
    try:
        importlib.metadata.distribution("evaluate")
    except importlib.metadata.PackageNotFoundError:
        return
    print(
        "warning: the Hugging Face library `evaluate` is installed in this environment and has the same import name; "
        "remove it (pip uninstall evaluate) or use another environment",
        file=sys.stderr,
    )


def _model_args(pairs: Sequence[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(f"--model-arg {pair}: expected KEY=VALUE, such as pad_type=same")
        try:
            out[key] = literal_eval(value)
        except (ValueError, SyntaxError):
            out[key] = value
    return out


def _load(args: argparse.Namespace, spec: str, known: dict[str, dict[str, Any]]) -> Subject:
    subject = load_subject(spec, args.model, _model_args(args.model_arg), args.seed)
    name, number = subject.name, 2
    while subject.name in known:  # two folders of one name: rows must tell them apart
        subject.name, number = f"{name} ({number})", number + 1
    return subject


def _open_data(args: argparse.Namespace, subject: Subject) -> EvalData:
    if args.data == "scenes":
        return ScenesData(subject.transform.resize)
    if args.data == "clickme":
        return ClickMeData(args.data_root)
    return FolderData(args.data_root, args.labels)


def _measure_share(
    subject: Subject, data: EvalData, indices: Sequence[int], options: RunOptions, state: _Processes
) -> list[Row]:
    """Rows of all processes. A process that meets a user's error tells the others, so that none waits for it."""
    rows: list[Row] = []
    errors: list[str] = []
    try:
        for batch_rows in measure(subject, data, indices, options):
            rows += batch_rows
    except UserError as error:
        errors.append(str(error))
    if state.world > 1:
        rows, errors = gather_object(rows), gather_object(errors)
    if errors:
        raise UserError(errors[0])
    return rows


def _describe(subject: Subject, seconds: float, count: int) -> dict[str, Any]:
    return {
        "model": subject.model_name,
        "source": subject.source,
        "weights_sha256": subject.weights_sha256,
        "num_params": subject.num_params,
        "transform": {"resize": subject.transform.resize, "crop": subject.transform.crop},
        "seconds": round(seconds, 2),
        "images_per_second": round(count / seconds, 2),
    }


def _report_bf16(subject: Subject, data: EvalData, indices: Sequence[int], options: RunOptions) -> dict[str, float]:
    batch = next(load_batches(data, subject.transform, indices[: options.batch_size], options.batch_size, 0))
    deviation = bf16_deviation(subject, data, batch, options)
    if deviation:
        print(
            f"{subject.name}: bf16 features change Spearman by {deviation['mean']:.1e} on average, at most "
            f"{deviation['max']:.1e} (first {len(batch.labels)} images, against fp32)"
        )
    return deviation


def _partial(args: argparse.Namespace, data: EvalData, count: int) -> str:
    """Why the scores are not those of the whole data set; empty if they are."""
    reasons = []
    if count < len(data):
        reasons.append(f"{count} of {len(data)} images (--limit, seed {args.seed})")
    missing = getattr(data, "missing_shards", [])
    if missing:
        reasons.append(f"{len(missing)} published shards absent")
    return "; ".join(reasons)


def _finish(
    args: argparse.Namespace,
    options: RunOptions,
    data: EvalData,
    indices: Sequence[int],
    rows: list[Row],
    checkpoints: dict[str, dict[str, Any]],
    world: int,
) -> None:
    run = {
        "partial": _partial(args, data, len(indices)),
        "data": {
            "name": data.name,
            "root": str(args.data_root) if args.data_root else None,
            "n_images": len(data),
            "fingerprint": data.fingerprint(),
        },
        "precision": args.precision,
        "device": str(options.device),
        "processes": world,
        "seed": args.seed,
        "command": shlex.join(["python", "-m", "evaluate", *sys.argv[1:]]),
        "versions": library_versions(),
    }
    scores = make_scores(rows, checkpoints, run, data.ceiling, args.seed)
    write_results(args.out, scores, rows)
    columns = []
    gallery = choose_gallery(rows)
    for spec, name in zip(args.ckpt, checkpoints):
        subject = load_subject(spec, args.model, _model_args(args.model_arg), args.seed)
        subject.name = name
        columns.append(gallery_column(subject, _open_data(args, subject), gallery, options))
    write_report(args.out / "report.html", scores, gallery, columns, rows, data)
    print(score_table(scores))
    print(f"scores, per-image table and report: {args.out}/scores.json, per_image.parquet, report.html")
