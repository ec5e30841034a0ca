"""A run from its command line to its published checkpoint.

Initial values, in this order: the model's own initialisation from `seed`; weights of the plain model if `pretrained`
or `init_from`; the DCLS surgery, if there is one; the snapshot if `resume` finds one, which replaces everything.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
)
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from common.atomic import write_text
from common.checkpoint import NameTakenError, free_folder
from common.compiling import compiler_failed
from common.disk import refusal
from common.errors import UserError
from common.launched import refuse_strangers
from common.model_card import evaluate_command
from common.published import load_plain
from common.surgery import position_groups, set_depthwise
from common.zoo import crashes_channels_last, create_plain, operate
from train.augment import model_transform
from train.averaging import Ema
from train.batches import BatchSource, ValidationSampler, open_data
from train.configure import accumulation, as_dict, dcls_spec, load_settings
from train.displacement import positions_of
from train.loader import LocalError, loaders_alive, make_loader
from train.loop import METERS, Session, train
from train.monitor import Monitor, duration, set_up_logging, table
from train.optimizers import Schedule, create_optimizer
from train.publish import publish_run
from train.randomness import key_seed
from train.remarks import remarks
from train.resume import choose_folder, take_on
from train.run_folder import COMMAND, RunFolder
from train.settings import Settings
from train.snapshots import clean_snapshots, kept_snapshots
from train.state import Progress, TrainState
from train.stopping import PATIENCE, Stop, requeue
from train.usage import usage
from train.validation import Scores
from train.watch import Watch

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
    accelerator = _accelerator(settings)
    set_up_logging(accelerator.process_index)
    command = shlex.join([*COMMAND.split(), *arguments])
    with ExitStack() as stack:  # what is held until the end: the run's folder
        return _run(settings, accelerator, command, stack)


def _run(settings: Settings, accelerator: Accelerator, command: str, stack: ExitStack) -> int:
    session = _build(settings, accelerator, command, stack)
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


# --- building -------------------------------------------------------------------------------------------------


def _accelerator(settings: Settings) -> Accelerator:
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("precision=fp16 needs a GPU; take precision=bf16 or fp32")
    precision = "no" if settings.precision == "fp32" else settings.precision
    # Every rank keeps its own BatchNorm statistics while training; they are averaged for validation.
    # torch 2.15 has another name for the option and says so; 2.11 has only this one.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    waiting = InitProcessGroupKwargs(timeout=PATIENCE)
    # `compile` alone decides about compiling, whatever Accelerate's own configuration says.
    accelerator = Accelerator(mixed_precision=precision, dynamo_backend="no", kwargs_handlers=[ddp, waiting])
    refuse_strangers(accelerator.num_processes)
    # Shapes are fixed, so trying cuDNN's algorithms once pays; its guesses for large depthwise kernels are poor.
    torch.backends.cudnn.benchmark = accelerator.device.type == "cuda"
    plain = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if accelerator.distributed_type not in plain:
        raise UserError(
            f"{accelerator.distributed_type.value} is not supported: the layers of a stage share one tensor of "
            "positions, which sharding would split or copy, and clamping and the average of the weights need whole "
            "tensors. These models fit on one device: launch with plain data parallelism (accelerate launch "
            "--multi_gpu), and raise accumulation by a smaller batch_size"
        )
    return accelerator


@loaders_alive()
def _build(settings: Settings, accelerator: Accelerator, command: str, stack: ExitStack) -> Session:
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    accumulation(settings, world)  # refuses a global batch that does not fit, before anything is loaded

    # --- a new run, or one to continue
    folder, snapshot = choose_folder(settings, accelerator, stack)

    # --- data
    train_source, val_source = open_data(settings)
    mine = ValidationSampler(len(val_source), settings.eval_batch_size or settings.batch_size, rank, world)
    val_loader = make_loader(val_source, mine, settings, device.type == "cuda", stays=True)
    if settings.num_classes is None:
        settings.num_classes = train_source.num_classes

    # --- model, its average, and what it starts from
    model = _create_model(settings, accelerator)
    ema = Ema(model, settings.ema.decay, settings.ema.warmup) if settings.ema.decay is not None else None

    # --- optimiser and schedule
    optimizer = create_optimizer(model, settings.optim, settings.positions, device)
    schedule = Schedule(
        settings.schedule,
        settings.optim.lr,
        settings.epochs,
        len(train_source) / settings.global_batch,
        settings.updates,
    )
    if settings.compile:
        for compiled in (model, ema.model if ema else None):
            if compiled is not None:
                compiled.compile()  # in place, so that no name gets a prefix
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    progress = Progress(schedule.updates, settings.seed, len(train_source), settings.global_batch, world)
    meters = torch.zeros(len(METERS), device=device)
    state = TrainState(progress, model, optimizer, ema, accelerator.scaler, meters, positions_of(model))

    # --- where it starts
    torch.manual_seed(key_seed(settings.seed, rank) % 2**63)  # drop path and dropout differ between ranks
    if snapshot is not None:
        take_on(state, snapshot, settings, accelerator)
    accelerator.wait_for_everyone()
    about: dict[str, Any] = {"settings": as_dict(settings), "command": command, "classes": train_source.classes}
    if accelerator.is_main_process:
        if snapshot is not None:
            folder.turn_back(progress.update)
            clean_snapshots(folder.snapshots, settings.snapshots.keep_last, settings.snapshots.keep_every)
            folder.describe(**about)
        else:
            folder.start(**about)

    # --- reports
    monitor = Monitor(folder, accelerator.is_main_process, progress.total, progress.update, settings.log.tensorboard)
    transform = model_transform(settings)
    watch = Watch(monitor, transform, state.initial)
    session = Session(
        settings, accelerator, state, wrapped, schedule, train_source, val_loader, transform, folder, about, monitor,
        watch,
    )  # fmt: skip
    _announce(session, resuming=snapshot is not None)
    if snapshot is None:
        monitor.text("settings", yaml.safe_dump(as_dict(settings), sort_keys=False))
        monitor.text("command", command)
        watch.positions(0, model)
    return session


def _create_model(settings: Settings, accelerator: Accelerator) -> nn.Module:
    """The model with its initial values, in the layout it trains in, on its device."""
    torch.manual_seed(settings.seed)
    model = create_plain(settings.model, settings.num_classes, pretrained=settings.pretrained, **settings.model_args)
    if settings.init_from:
        load_plain(model, settings.model, Path(settings.init_from).expanduser())
    spec = dcls_spec(settings)
    if spec is not None:
        replaced = operate(model, spec, settings.model)
        if replaced.errors:
            log.info(replaced.summary)
    try:
        set_depthwise(model, settings.depthwise)
    except ValueError as error:
        raise UserError(f"depthwise={settings.depthwise}: {error}") from error
    if settings.channels_last and accelerator.device.type == "cpu" and crashes_channels_last(model):
        settings.channels_last = False
        accelerator.print("channels_last=false on a CPU: there torch crashes in this model's first layers otherwise")
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout).to(accelerator.device)
    for group in position_groups(model):  # no pictures, although they have four dimensions
        for values in (group.positions, group.sigma):
            if values is not None:
                values.data = values.data.contiguous()
    return model


def _announce(session: Session, resuming: bool) -> None:
    settings, progress = session.settings, session.state.progress
    count = sum(p.numel() for p in session.state.model.parameters())
    val_source = cast(BatchSource, session.val_loader.dataset)
    rows = [
        ("run", str(session.folder.path)),
        ("model", f"{settings.model}, {count / 1e6:.2f} M parameters, {settings.num_classes} classes"),
        ("data", f"{settings.data.source}: {progress.images} to train, {len(val_source)} to validate"),
        ("length", f"{progress.total} updates, {progress.total * progress.global_batch / progress.images:.1f} epochs"),
        (
            "update",
            f"{progress.global_batch} pictures = {progress.processes} process(es) x "
            f"{accumulation(settings, progress.processes)} x {settings.batch_size}, {settings.precision}, "
            f"{session.accelerator.device.type}",
        ),
    ]
    rows += remarks(session.train_source, val_source, settings, session.accelerator.device)
    log.info("%s\n%s", "resumed run" if resuming else "new run", table(rows))


# --- the end --------------------------------------------------------------------------------------------------


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
