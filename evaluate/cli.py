"""The command `python -m evaluate`: what it takes, and the way from there to the results."""

from __future__ import annotations

import argparse
import importlib.metadata
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.checkpoint import library_versions
from common.errors import UserError
from evaluate import photographs
from evaluate.comparison import compare_pairs, group_seeds, verdict
from evaluate.data import ClickMeData, EvalData, FolderData, ScenesData
from evaluate.engine import Evaluation, Request, evaluate_requests, labels
from evaluate.explainers import EXPLAINERS, MicroBatch, parse_method, with_warning
from evaluate.figures import write_figures
from evaluate.gallery import choose_gallery, gallery_column
from evaluate.metrics import MEASURES, parse_measure
from evaluate.options import add_compile_option, add_layer_option, add_model_options, model_args
from evaluate.processes import Processes, default_workers, start_processes
from evaluate.protocols import PROTOCOLS
from evaluate.report import measure_table, write_report
from evaluate.results import COLUMNS, common_notes
from evaluate.runner import OTHER_HUMAN, RunOptions
from evaluate.scores import comparison_table, make_scores, plain_table, score_table, write_scores, write_tensorboard
from evaluate.study import STUDIES, study_pairs, study_plan, study_requests
from evaluate.subjects import Subject

DATA_SETS = ("clickme", "scenes", "imagefolder")
CKPT_HELP = (
    "folder written by train; .pth/.pth.tar/.safetensors file (with --model); zenodo:NAME; timm:TAG; "
    "hf-hub:ORG/NAME; untrained (with --model): random weights as a baseline"
)


def parser() -> argparse.ArgumentParser:
    """The options of `python -m evaluate`."""
    p = argparse.ArgumentParser(
        prog="python -m evaluate",
        description="Measure how human a checkpoint's attention is.",
        epilog="python -m evaluate explain IMAGE... explains your own photographs",
    )
    what = p.add_argument_group("what is measured")
    what.add_argument("--ckpt", nargs="+", default=[], metavar="CKPT", help=CKPT_HELP)
    add_model_options(what)
    what.add_argument("--study", choices=STUDIES, help="every model of the study instead of --ckpt, plain against DCLS")
    what.add_argument("--weights-dir", type=Path, help="--study: folder of weight files to take before any download")
    what.add_argument("--dry-run", action="store_true", help="--study: print what would be downloaded and computed")
    what.add_argument("--data", choices=DATA_SETS, default="clickme")
    what.add_argument("--data-root", type=Path, help="folder of the data set (not for scenes)")
    what.add_argument("--labels", type=Path, help="imagefolder: CSV with columns file, label (no class folders)")
    what.add_argument("--limit", type=int, help="a seeded random subset of so many images; scores are marked partial")
    how = p.add_argument_group("how")
    method = "NAME[:KEY=VALUE,...]"
    default = ["grad_cam", "threshold_grad_cam"]
    known = f"default: {' '.join(default)}; there are {', '.join(map(with_warning, EXPLAINERS))}, {OTHER_HUMAN}"
    how.add_argument("--explainer", nargs="+", metavar=method, default=default, help=known)
    how.add_argument("--protocol", nargs="+", choices=PROTOCOLS, help="default: paper (with --study both)")
    add_layer_option(how)
    how.add_argument("--target", choices=("label", "predicted"), default="label", help="class that is explained")
    further = f"further measures of each explainer: {', '.join(MEASURES)}"
    how.add_argument("--metric", nargs="+", default=[], metavar=method, help=further)
    how.add_argument("--micro-batch", type=int, help="images at once where many passes are needed; adapts to memory")
    pair = "paired comparison of two checkpoints by their names in the table, B minus A; repeatable"
    how.add_argument("--compare", nargs=2, action="append", default=[], metavar=("A", "B"), help=pair)
    how.add_argument("--out", type=Path, default=Path("results/latest"), help="folder of results (%(default)s)")
    how.add_argument("--batch-size", type=int, help="default: 8 on a CPU, where it is fastest, 32 on a GPU")
    how.add_argument("--workers", type=int, help="processes that read pictures (default: 2 on a CPU, more on a GPU)")
    how.add_argument("--skip-bad", action="store_true", help="leave out and list images that cannot be read")
    how.add_argument("--seed", type=int, default=0, help="of --limit, the bootstrap and untrained weights")
    how.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the features; the head is fp32")
    add_compile_option(how)
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate what the command line asks for; returns 0.

    Raises:
        UserError: what was asked for cannot be done.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["explain"]:
        return photographs.main(words[1:])
    args = parser().parse_args(words)
    _check(args)
    requests, pairs = _requests(args)
    known = labels(requests)
    for name in (name for pair in pairs for name in pair):
        if name not in known:
            raise UserError(f"--compare {name}: no such checkpoint in this run; there are {', '.join(known)}")
    if args.dry_run:
        print(study_plan(requests, args.data_root))
        return 0
    for entry in ("config.yaml", "snapshots"):
        if (args.out / entry).exists():
            raise UserError(f"--out {args.out} holds a training run ({entry}); take another folder for the results")
    processes = start_processes(args.device)
    protocols = args.protocol or (list(PROTOCOLS) if args.study else ["paper"])
    options = RunOptions(
        tuple(dict.fromkeys(args.explainer)),
        tuple(dict.fromkeys(protocols)),
        tuple(dict.fromkeys(args.metric)),
        args.batch_size or (8 if processes.device.type == "cpu" else 32),
        default_workers(processes.device) if args.workers is None else args.workers,
        args.precision == "bf16",
        args.compile,
        processes.device,
        MicroBatch(args.micro_batch, processes.device),
        skip_bad=args.skip_bad,
        layer=args.layer,
        target=args.target,
    )
    result = evaluate_requests(
        requests, lambda subject: _open_data(args, subject), options, processes, args.out, args.limit, args.seed
    )
    if processes.is_main:
        _finish(args, requests, pairs, options, processes, result)
    processes.close()
    return 0


def _check(args: argparse.Namespace) -> None:
    for text in args.explainer:
        if text != OTHER_HUMAN:
            parse_method(text)
    for text in args.metric:
        parse_measure(text)
        if text in COLUMNS.names:
            raise UserError(f"--metric {text}: rows with human maps have it already, for each protocol; leave it out")
    for name, least in (("limit", 1), ("batch_size", 1), ("micro_batch", 1), ("workers", 0), ("seed", 0)):
        if (value := getattr(args, name)) is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    if args.dry_run and not args.study:
        raise UserError("--dry-run shows what --study would fetch and compute; give it with --study")
    if bool(args.ckpt) == bool(args.study):
        raise UserError(f"give either --ckpt CKPT... or --study {'|'.join(STUDIES)}; CKPT is a {CKPT_HELP}")
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


def _requests(args: argparse.Namespace) -> tuple[list[Request], list[tuple[str, str]]]:
    pairs = [(first, second) for first, second in args.compare]
    if args.study:
        return study_requests(args.weights_dir), pairs or study_pairs()
    arguments = model_args(args.model_arg)
    return [Request(spec, args.model, arguments) for spec in args.ckpt], pairs


def _open_data(args: argparse.Namespace, subject: Subject) -> EvalData:
    if args.data == "scenes":
        return ScenesData(subject.transform.resize)
    if args.data == "clickme":
        return ClickMeData(args.data_root)
    return FolderData(args.data_root, args.labels, subject.num_classes, subject.classes)


def _finish(
    args: argparse.Namespace,
    requests: Sequence[Request],
    pairs: Sequence[tuple[str, str]],
    options: RunOptions,
    processes: Processes,
    result: Evaluation,
) -> None:
    """Scores, comparisons, report: on the main process, once every row is there."""
    run: dict[str, Any] = {
        "partial": result.partial,
        "data": {
            "name": result.data.name,
            "root": str(args.data_root) if args.data_root else None,
            "n_images": len(result.data),
            "fingerprint": result.data.fingerprint(),
        },
        "precision": args.precision,
        "compile": args.compile,
        "device": str(options.device),
        "processes": processes.world,
        "seed": args.seed,
        "command": shlex.join(["python", "-m", "evaluate", *sys.argv[1:]]),
        "versions": library_versions(),
    }
    run["layer"] = args.layer or "the last feature map (class-token transformers: the last block's first norm)"
    run["target"] = args.target
    scores = make_scores(result.groups, result.checkpoints, run, result.data.ceiling, args.seed)
    comparisons = _compare(pairs, result, scores, args.seed)
    write_scores(args.out, scores, comparisons)
    gallery = choose_gallery(result.groups, pairs)
    columns = []
    for request, name in zip(requests, result.checkpoints):
        subject = request.load(args.seed, name)
        columns.append(gallery_column(subject, _open_data(args, subject), gallery, options))
    charts = write_figures(args.out / "figures", scores)
    write_report(args.out, scores, comparisons, result.groups, gallery, columns, charts)
    write_tensorboard(args.out / "tensorboard", scores)
    print(score_table(scores))
    if options.measures:
        _, head, rows = measure_table(scores)
        print(f"\n{plain_table(head, rows)}")
    if comparisons:
        print(f"\n{comparison_table(comparisons)}")
    print(f"scores, per-image table and report: {args.out}/scores.json, per_image.parquet, report.html")


def _compare(
    pairs: Sequence[tuple[str, str]], result: Evaluation, scores: Sequence[dict[str, Any]], seed: int
) -> list[dict[str, Any]]:
    comparisons = compare_pairs(result.groups, pairs, result.data.ceiling, seed)
    seeds = group_seeds(scores)
    notes = {name: about["explainer_notes"] for name, about in result.checkpoints.items()}
    for item in comparisons:
        pair = common_notes({name: notes[name] for name in (item["first"], item["second"])})
        item |= {"verdict": verdict(item, seeds), "explainer_note": pair.get(item["explainer"])}
    return comparisons
