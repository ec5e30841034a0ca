"""The command `python -m evaluate`: from its arguments to the results."""

from __future__ import annotations

import argparse
import importlib.metadata
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from common.errors import UserError
from evaluate.cli import explain as photographs
from evaluate.cli.arguments import BOUNDS, CKPT_HELP, parser
from evaluate.cli.claim import claimed, folder_of
from evaluate.cli.results import Run, files_of_run, write_results
from evaluate.data.interface import EvalData, ModelView
from evaluate.data.registry import find_data, open_data
from evaluate.network.micro_batch import MicroBatch
from evaluate.network.requests import Checkpoints, Request, read_requests
from evaluate.network.subject import Subject
from evaluate.rows import table_schema
from evaluate.run.engine import evaluate_plans
from evaluate.run.identity import run_question
from evaluate.run.options import RunOptions
from evaluate.run.preflight import make_plans
from evaluate.run.processes import Processes, default_workers, start_processes
from evaluate.studies.registry import STUDIES
from evaluate.studies.study import plan_of


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
        print(plan_of(requests, args.data_root))
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
    called = args.study.label if args.study else first + f"-and-{len(others)}-more" * bool(others)
    out = args.out or folder_of(question, called, args.data.partition(":")[0])
    claim = claimed(
        out,
        question,
        _command(),
        files_of_run([plan.name for plan in plans], options),
        args.overwrite,
        ("parts/*/*", f"finished parts are kept in {out / 'parts'}, and the same command continues after them"),
    )
    with ExitStack() as stack:
        processes.together(lambda: stack.enter_context(claim) if processes.is_main else None)
        result = evaluate_plans(checkpoints, plans, options, processes, out, args.seed)
        lacking = misfits + result.failed
        if processes.is_main:
            run = Run(
                out=out, pairs=pairs, seed=args.seed, command=_command(), processes=processes.world, lacking=lacking
            )
            write_results(run, options, checkpoints, plans, result)
    processes.close()
    # A launcher stops every process when one of them fails, so only the one that is busy to the end says so.
    return 2 if lacking and processes.is_main else 0


def _command() -> str:
    return shlex.join(["python", "-m", "evaluate", *sys.argv[1:]])


def _options(args: argparse.Namespace, processes: Processes) -> RunOptions:
    protocols = args.protocol or (args.study.entry.protocols if args.study else ["paper"])
    return RunOptions(
        explainers={chosen.label: chosen for chosen in args.explainer},
        protocols=tuple(dict.fromkeys(protocols)),
        measures={chosen.label: chosen for chosen in args.metric},
        batch_size=args.batch_size or (8 if processes.device.type == "cpu" else 32),
        workers=default_workers(processes.device) if args.workers is None else args.workers,
        bf16=args.precision == "bf16",
        compile=args.compile,
        device=processes.device,
        micro_batch=MicroBatch(args.micro_batch, processes.device),
        skip_bad=args.skip_bad,
        layer=args.layer,
        target=args.target,
    )


def _check(args: argparse.Namespace) -> None:
    for label in (chosen.label for chosen in args.metric):
        if label in table_schema().names:
            raise UserError(f"--metric {label}: rows with human maps have it already, for each protocol; leave it out")
    for name, (least, most) in BOUNDS.items():
        if (value := getattr(args, name)) is not None and not least <= value <= most:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least} and at most {most:,}")
    if args.dry_run and not args.study:
        raise UserError("--dry-run shows what --study would fetch and compute; give it with --study")
    if bool(args.ckpt) == bool(args.study):
        raise UserError(f"give either --ckpt CKPT... or --study {'|'.join(STUDIES)}; CKPT is a {CKPT_HELP}")
    if not find_data(args.data, args.data_root).has_human_maps:
        if args.compare:
            raise UserError(f"--compare compares alignment with human maps, which --data {args.data} has none of")
        for label in (chosen.label for chosen in args.explainer if "human" in chosen.entry.needs):
            raise UserError(f"--explainer {label} needs human maps, which --data {args.data} has none of")
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
        study = args.study.entry
        return study.function(args.weights_dir, **args.study.parameters), pairs or list(study.pairs)
    return read_requests(args.ckpt, args.model, args.model_arg), pairs


def _opener(args: argparse.Namespace) -> Callable[[Subject], EvalData]:
    """The data set for a model.

    Raises:
        UserError: there is none.
    """
    opened = open_data(args.data, args.data_root, args.labels)

    def of_model(subject: Subject) -> EvalData:
        classes = None if subject.classes is None else tuple(subject.classes)
        return opened(ModelView(subject.transform.resize, subject.num_classes, classes))

    return of_model
