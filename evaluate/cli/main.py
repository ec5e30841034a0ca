"""The command `python -m evaluate`: what it takes, and the way from there to the results."""

from __future__ import annotations

import argparse
import importlib.metadata
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.arguments import Adding, ArgumentParser
from common.atomic import file_name
from common.errors import UserError
from common.text import shown
from common.versions import library_versions
from common.workers import MOST
from evaluate.cli import explain as photographs
from evaluate.cli.claim import claimed, folder_of
from evaluate.cli.options import METHOD, add_compile_option, add_layer_option, add_model_options, add_out_options
from evaluate.data.clickme import ClickMeData
from evaluate.data.folder import FolderData
from evaluate.data.interface import EvalData
from evaluate.data.registry import DATA_SETS
from evaluate.data.scenes import ScenesData
from evaluate.explainers.registry import EXPLAINERS, parse_method, with_warning
from evaluate.maps.frames import PROTOCOLS
from evaluate.metrics.registry import MEASURES, parse_measure
from evaluate.network.micro_batch import MicroBatch
from evaluate.network.requests import Checkpoints, Request, read_requests
from evaluate.network.subject import Subject
from evaluate.report.charts import figure_files, write_figures
from evaluate.report.gallery import choose_gallery
from evaluate.report.page import write_report
from evaluate.report.tables import comparison_table, measure_table, plain_table, score_table
from evaluate.rows import COLUMNS, OTHER_HUMAN, common_notes
from evaluate.run.engine import Evaluation, evaluate_plans
from evaluate.run.identity import run_question
from evaluate.run.options import RunOptions
from evaluate.run.pictures import gallery_column
from evaluate.run.preflight import Plan, make_plans
from evaluate.run.processes import Processes, default_workers, start_processes
from evaluate.scores.comparisons import compare_pairs, group_seeds, verdict
from evaluate.scores.files import write_scores, write_tensorboard
from evaluate.scores.scores import make_scores
from evaluate.studies.paper import STUDIES, study_pairs, study_plan, study_requests

CKPT_HELP = (
    "folder written by train; .pth/.pth.tar/.safetensors file (with --model); zenodo:NAME; timm:TAG; "
    "hf-hub:ORG/NAME; untrained (with --model): random weights as a baseline"
)


FILES = ("per_image.parquet", "scores.json", "scores.csv", "comparisons.json", "report.html", "report.md")
"""What every run may leave in its folder, beside `parts`, figures and TensorBoard's events."""


BOUNDS = {
    "limit": (1, 10**12), "batch_size": (1, 2**20), "micro_batch": (1, 2**20), "workers": (0, MOST),
    "seed": (0, 2**63 - 1),
}  # fmt: skip
"""Least and most of the options that are numbers."""


def parser() -> ArgumentParser:
    """The options of `python -m evaluate`."""
    p = ArgumentParser(
        prog="python -m evaluate",
        description="Measure how human a checkpoint's attention is.",
        epilog="python -m evaluate explain IMAGE... explains your own photographs. Options of several values may be "
        "given several times; the values add up.",
    )
    what = p.add_argument_group("what is measured")
    named = f"{CKPT_HELP}. NAME=CKPT gives it a name for tables, --model and --compare"
    what.add_argument("--ckpt", nargs="+", action=Adding, default=[], metavar="[NAME=]CKPT", help=named)
    add_model_options(what, "+")
    what.add_argument("--study", choices=STUDIES, help="every model of the study instead of --ckpt, plain against DCLS")
    what.add_argument("--weights-dir", type=Path, help="--study: folder of weight files to take before any download")
    what.add_argument("--dry-run", action="store_true", help="--study: print what would be downloaded and computed")
    what.add_argument("--data", choices=DATA_SETS, default="clickme", help="default: %(default)s")
    what.add_argument("--data-root", type=Path, help="folder of the data set (not for scenes)")
    what.add_argument("--labels", type=Path, help="imagefolder: CSV with columns file, label (no class folders)")
    what.add_argument("--limit", type=int, help="a seeded random subset of so many images; scores are marked partial")
    how = p.add_argument_group("how")
    default = ["grad_cam", "threshold_grad_cam"]
    known = f"default: {' '.join(default)}; there are {', '.join(map(with_warning, EXPLAINERS))}, {OTHER_HUMAN}"
    how.add_argument("--explainer", nargs="+", action=Adding, metavar=METHOD, default=default, help=known)
    protocols = "default: paper (with --study both)"
    how.add_argument("--protocol", nargs="+", action=Adding, choices=PROTOCOLS, default=[], help=protocols)
    add_layer_option(how)
    how.add_argument("--target", choices=("label", "predicted"), default="label", help="class that is explained")
    further = f"further measures of each explainer: {', '.join(MEASURES)}"
    how.add_argument("--metric", nargs="+", action=Adding, default=[], metavar=METHOD, help=further)
    how.add_argument("--micro-batch", type=int, help="images at once where many passes are needed; adapts to memory")
    pair = "paired comparison of two checkpoints by their names in the table, B minus A; repeatable"
    how.add_argument("--compare", nargs=2, action="append", default=[], metavar=("A", "B"), help=pair)
    add_out_options(how)
    size = "default: 8 on a CPU, where it is fastest, 32 on a GPU; adapts to memory"
    how.add_argument("--batch-size", type=int, help=size)
    how.add_argument("--workers", type=int, help="processes that read pictures (default: 2 on a CPU, more on a GPU)")
    how.add_argument("--skip-bad", action="store_true", help="leave out and list images that cannot be read")
    how.add_argument("--seed", type=int, default=0, help="of --limit, the bootstrap and untrained weights")
    how.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the features; the head is fp32")
    add_compile_option(how)
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate what the command line asks for.

    Returns:
        0, or 2 where the report lacks some of it, which is listed.

    Raises:
        UserError: what was asked for cannot be done.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["explain"]:
        return photographs.main(words[1:])
    args = parser().parse_args(words)
    _check(args)
    requests, pairs = _requests(args)
    if args.dry_run:
        print(study_plan(requests, args.data_root))
        return 0
    checkpoints = Checkpoints(requests, args.seed)
    for name in (name for pair in pairs for name in pair):
        if name not in checkpoints.requests:
            known = ", ".join(checkpoints.requests)
            raise UserError(
                f"--compare {name}: no such checkpoint in this run; there are {known} (--ckpt NAME=CKPT gives a name)"
            )
    processes = start_processes(args.device)
    options = _options(args, processes)
    plans, misfits = processes.together(
        lambda: make_plans(checkpoints, _opener(args), options, args.limit, args.seed, processes.is_main)
    )
    question = run_question(plans, options, args.limit, args.seed)
    first, *others = checkpoints.requests
    called = args.study or first + f"-and-{len(others)}-more" * bool(others)
    out = args.out or folder_of(question, called, args.data)
    claim = claimed(
        out,
        question,
        _command(),
        _written([plan.name for plan in plans], options),
        args.overwrite,
        ("parts/*/*", f"finished parts are kept in {out / 'parts'}, and the same command continues after them"),
    )
    with ExitStack() as stack:
        processes.together(lambda: stack.enter_context(claim) if processes.is_main else None)
        result = evaluate_plans(checkpoints, plans, options, processes, out, args.seed)
        lacking = misfits + result.failed
        if processes.is_main:
            _finish(args, out, checkpoints, plans, pairs, options, processes, result, lacking)
    processes.close()
    # A launcher stops every process when one of them fails, so only the one that is busy to the end says so.
    return 2 if lacking and processes.is_main else 0


def _written(checkpoints: Sequence[str], options: RunOptions) -> list[str]:
    """Files and folders that a run may write into its folder."""
    figures = figure_files(options.explainers, options.protocols, checkpoints, options.measures)
    events = [f"tensorboard/{file_name(name)}" for name in checkpoints]
    return [*FILES, *(f"figures/{name}" for name in figures), *events]


def _command() -> str:
    return shlex.join(["python", "-m", "evaluate", *sys.argv[1:]])


def _options(args: argparse.Namespace, processes: Processes) -> RunOptions:
    protocols = args.protocol or (list(PROTOCOLS) if args.study else ["paper"])
    return RunOptions(
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


def _check(args: argparse.Namespace) -> None:
    for text in args.explainer:
        if text != OTHER_HUMAN:
            parse_method(text)
    for text in args.metric:
        parse_measure(text)
        if text in COLUMNS.names:
            raise UserError(f"--metric {text}: rows with human maps have it already, for each protocol; leave it out")
    for name, (least, most) in BOUNDS.items():
        if (value := getattr(args, name)) is not None and not least <= value <= most:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least} and at most {most:,}")
    if args.dry_run and not args.study:
        raise UserError("--dry-run shows what --study would fetch and compute; give it with --study")
    if bool(args.ckpt) == bool(args.study):
        raise UserError(f"give either --ckpt CKPT... or --study {'|'.join(STUDIES)}; CKPT is a {CKPT_HELP}")
    if args.data != "scenes" and args.data_root is None:
        layout = "val-0.tfrecords ... val-16.tfrecords" if args.data == "clickme" else "class folders of pictures"
        raise UserError(f"--data {args.data} needs --data-root DIR, the folder that holds {layout}")
    if not DATA_SETS[args.data].has_human_maps:
        if args.compare:
            raise UserError(f"--compare compares alignment with human maps, which --data {args.data} has none of")
        if OTHER_HUMAN in args.explainer:
            raise UserError(f"--explainer {OTHER_HUMAN} needs human maps, which --data {args.data} has none of")
    for entry in ("config.yaml", "snapshots"):
        if args.out is not None and (args.out / entry).exists():
            raise UserError(f"--out {args.out} holds a training run ({entry}); take another folder for the results")
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
    return read_requests(args.ckpt, args.model, args.model_arg), pairs


def _opener(args: argparse.Namespace) -> Callable[[Subject], EvalData]:
    """The data set for a model; models that see it alike share one.

    Raises:
        UserError: there is none.
    """
    if args.data == "scenes":
        scenes = cache(ScenesData)
        return lambda subject: scenes(subject.transform.resize)
    if args.data == "clickme":
        clickme = ClickMeData(args.data_root)
        return lambda subject: clickme

    @cache
    def folder(num_classes: int, classes: tuple[str, ...] | None) -> FolderData:
        return FolderData(args.data_root, args.labels, num_classes, None if classes is None else list(classes))

    return lambda subject: folder(subject.num_classes, None if subject.classes is None else tuple(subject.classes))


def _finish(
    args: argparse.Namespace,
    out: Path,
    checkpoints: Checkpoints,
    plans: Sequence[Plan],
    pairs: Sequence[tuple[str, str]],
    options: RunOptions,
    processes: Processes,
    result: Evaluation,
    lacking: Sequence[str],
) -> None:
    """Scores, comparisons, report: on the main process, once every row is there."""
    run: dict[str, Any] = {
        "partial": result.partial,
        "lacking": list(lacking),
        "precision": args.precision,
        "compile": args.compile,
        "device": str(options.device),
        "processes": processes.world,
        "seed": args.seed,
        "command": _command(),
        "versions": library_versions(),
    }
    run["layer"] = args.layer or "the last feature map (class-token transformers: the last block's first norm)"
    run["target"] = args.target
    scores = make_scores(result.groups, result.checkpoints, run, result.data.ceiling, args.seed)
    comparisons = _compare(pairs, result, scores, args.seed)
    write_scores(out, scores, comparisons)
    gallery = choose_gallery(result.groups, pairs)
    indices = [item.index for item in gallery]
    columns = []
    for plan in tqdm(plans, "gallery", unit="checkpoint", leave=False, disable=None):
        if plan.name in result.checkpoints:
            with checkpoints.on(plan.name, options.device) as subject:
                columns.append(gallery_column(subject, plan.data, indices, plan.options))
    charts = write_figures(out / "figures", scores)
    write_report(out, scores, comparisons, result.groups, gallery, columns, charts)
    write_tensorboard(out / "tensorboard", scores)
    print(score_table(scores))
    if options.measures:
        _, head, rows = measure_table(scores)
        print(f"\n{plain_table(head, rows)}")
    if comparisons:
        print(f"\n{comparison_table(comparisons)}")
    print(f"scores, per-image table and report: {out}/scores.json, per_image.parquet, report.html")
    if lacking:
        print(shown("error: not measured:\n  " + "\n  ".join(lacking)), file=sys.stderr)


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
