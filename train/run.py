"""The command `train/main.py`: from its arguments to the published checkpoint."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch._dynamo.exc import BackendCompilerFailed

from common.atomic import write_text
from common.checkpoint import NameTakenError, free_folder
from common.compiling import compiler_failed
from common.disk import refusal
from common.model_card import evaluate_command
from train.build import build, make_accelerator
from train.configure import load_settings
from train.data.loader import LocalError
from train.loop import train
from train.publish import publish_run
from train.runs.run_folder import COMMAND, RunFolder
from train.runs.snapshots import kept_snapshots
from train.session import Session
from train.settings import Settings
from train.stopping import Stop, requeue
from train.usage import usage
from train.validation import Scores
from train.watching.console import duration, set_up_logging, table

log = logging.getLogger("train")


def main(argv: Sequence[str] | None = None) -> int:
    """Train what the arguments ask for; returns 0, or 130 after Ctrl-C.

    Raises:
        UserError: it cannot be done.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(arguments):
        print(usage([word for word in arguments if not word.startswith("-") and "=" not in word]))
        return 0
    settings = load_settings(arguments)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    accelerator = make_accelerator(settings)
    set_up_logging(accelerator.process_index)
    command = shlex.join([*COMMAND.split(), *arguments])
    with ExitStack() as stack:  # what is held until the end: the run's folder
        return _run(settings, accelerator, command, stack)


def _run(settings: Settings, accelerator: Accelerator, command: str, stack: ExitStack) -> int:
    session = build(settings, accelerator, command, stack)
    try:
        stop, scores = train(session)
        if stop is Stop.NO:
            _finish(session, scores)
        else:
            progress = session.state.progress
            log.info("stopped after update %d; snapshot in %s", progress.update, session.folder.snapshots)
            if stop is Stop.REQUEUE and accelerator.is_main_process:
                log.info(requeue())
            if stop is Stop.INTERRUPT:
                log.info("continue with resume=auto")
    except LocalError as error:
        if not accelerator.is_main_process:  # the others know nothing of it
            print(f"error: {error}", file=sys.stderr)
        raise
    except BackendCompilerFailed as error:
        raise compiler_failed(error, "take compile=false") from error
    except Exception as error:
        if refusal(error):
            error.add_note(kept_snapshots(session.folder.snapshots))
        raise
    finally:
        session.monitor.close()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 130 if stop is Stop.INTERRUPT else 0


def _finish(session: Session, scores: dict[str, Scores]) -> None:
    """Write the summary, publish, and say what was reached and how to evaluate it."""
    if not session.accelerator.is_main_process:
        return
    settings, state, folder = session.settings, session.state, session.folder
    progress = state.progress
    chosen = scores[settings.publish_weights]
    metrics: dict[str, Any] = {"top1": chosen.top1, "top5": chosen.top5, "loss": chosen.loss}
    metrics |= {"val_images": chosen.images, "weights": settings.publish_weights}
    if len(scores) > 1:
        metrics |= {f"top1_{kind}": s.top1 for kind, s in scores.items()}
    moved = session.watch.displacement(state.model)
    if moved is not None:
        metrics["mean_displacement_px"] = moved
    metrics |= {"epochs": progress.exact_epoch, "updates": progress.update, "train_seconds": round(progress.seconds, 1)}
    write_text(
        folder.summary, json.dumps({"metrics": metrics, "scores": {k: asdict(s) for k, s in scores.items()}}, indent=2)
    )
    session.monitor.hyperparameters(
        {"model": settings.model, "lr": settings.optim.lr, "optimizer": settings.optim.name, "seed": settings.seed},
        {"top1": chosen.top1, "loss": chosen.loss},
    )
    rows = [(f"top-1, {kind} weights", f"{s.top1:.2f} % of {s.images}") for kind, s in scores.items()]
    rows += [(f"loss, {kind} weights", f"{s.loss:.4f}") for kind, s in scores.items()]
    if progress.best_top1 > chosen.top1:
        rows.append(("best top-1 on the way", f"{progress.best_top1:.2f} % (update {progress.best_update})"))
    if moved is not None:
        rows.append(("positions moved by", f"{moved:.2f} px on average"))
    rows.append(("training time", duration(progress.seconds)))
    rows.append(("images/s", f"{progress.update * progress.global_batch / max(progress.seconds, 1e-9):.0f}"))
    rows.append(("run", str(folder.path)))
    if settings.publish:
        published = _publish(settings, folder)
        rows.append(("checkpoint", str(published)))
        command = evaluate_command(str(published), settings.data.source, session.train_source.num_classes)
        rows.append(("evaluate it", command))
    log.info("done\n%s", table(rows))


def _publish(settings: Settings, folder: RunFolder) -> Path:
    """Publish under the run's name, or under a free one where another run has taken it meanwhile."""
    library, name = Path(settings.checkpoints_dir), str(settings.name)
    while True:
        try:
            return publish_run(folder.path, name, library, settings.overwrite)
        except NameTakenError as error:
            name = free_folder(library, str(settings.name)).name
            log.warning("%s. It is published as %s instead", error, name)
