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
    broadcast_object_list,
    gather_object,
)
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from common.atomic import write_text
from common.checkpoint import checkpoint_folder, free_folder
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
from train.displacement import load_positions, positions_of, save_positions
from train.loader import LocalError, loaders_alive, make_loader
from train.loop import METERS, Session, train
from train.monitor import Monitor, duration, set_up_logging, table
from train.optimizers import Schedule, create_optimizer
from train.publish import publish_run
from train.randomness import key_seed
from train.remarks import remarks
from train.run_folder import RunFolder, new_run, run_to_resume
from train.settings import Settings
from train.state import Progress, TrainState, kept_snapshots, read_snapshot
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
    command = shlex.join(["python", "train/main.py", *arguments])
    session = _build(settings, accelerator, command)
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
def _build(settings: Settings, accelerator: Accelerator, command: str) -> Session:
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    accumulation(settings, world)  # refuses a global batch that does not fit, before anything is loaded

    # --- a new run, or one to continue
    folder, snapshot = _choose_folder(settings, accelerator)

    # --- data
    train_source, val_source = open_data(settings)
    mine = ValidationSampler(len(val_source), settings.eval_batch_size or settings.batch_size, rank, world)
    val_loader = make_loader(val_source, mine, settings, device.type == "cuda", stays=True)
    if settings.num_classes is None:
        settings.num_classes = train_source.num_classes

    # --- model, its average, and what it starts from
    model = _create_model(settings, accelerator)
    ema = Ema(model, settings.ema.decay, settings.ema.warmup) if settings.ema.decay is not None else None
    initial = positions_of(model)

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
    state = TrainState(progress, model, optimizer, ema, accelerator.scaler, meters)

    # --- where it starts
    torch.manual_seed(key_seed(settings.seed, rank) % 2**63)  # drop path and dropout differ between ranks
    if snapshot is not None:
        _resume(state, snapshot, settings, accelerator)
        initial = load_positions(folder.initial_positions) or initial
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if snapshot is not None:
            folder.turn_back(progress.update)
            folder.describe(as_dict(settings), command)
        else:
            folder.start(as_dict(settings), command, train_source.classes)
            save_positions(folder.initial_positions, initial)

    # --- reports
    monitor = Monitor(folder, accelerator.is_main_process, progress.total, progress.update, settings.log.tensorboard)
    transform = model_transform(settings)
    watch = Watch(monitor, transform, initial)
    session = Session(
        settings, accelerator, state, wrapped, schedule, train_source, val_loader, transform, folder, monitor, watch
    )
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


def _choose_folder(settings: Settings, accelerator: Accelerator) -> tuple[RunFolder, Path | None]:
    """The run's folder, and the snapshot it goes on from, if it does; one answer for all ranks.

    Raises:
        UserError: there is nothing to go on from, or the checkpoint's name is taken by another run's.
    """
    answer: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            folder, snapshot = run_to_resume(settings) or (new_run(settings), None)
            if settings.publish:  # refused now, not after the training
                own = None if settings.overwrite else folder.own_weights() or ""
                checkpoint_folder(Path(settings.checkpoints_dir), str(settings.name), own)
            answer = [(folder, snapshot)]
        except UserError as error:
            answer = [error]
    broadcast_object_list(answer)
    if isinstance(answer[0], UserError):
        raise answer[0]
    return answer[0]


def _resume(state: TrainState, snapshot: Path, settings: Settings, accelerator: Accelerator) -> None:
    """Take on a snapshot; every rank reads it.

    Raises:
        UserError: a rank cannot read it, or it belongs to other data, another model or a longer run.
    """
    content, record = _read_alike(snapshot, accelerator)
    before, now = Progress(**record["progress"]), state.progress
    for name in ("seed", "images", "global_batch"):
        _refuse_change(snapshot, name, getattr(before, name), getattr(now, name), "the order of the data")
    old, new = record["settings"], as_dict(settings)
    for name in ("model", "dcls", "num_classes"):
        _refuse_change(snapshot, name, old.get(name), new[name], "the network")
    for name in ("name", "decay_norm_bias", "layer_decay"):
        _refuse_change(snapshot, f"optim.{name}", old["optim"].get(name), new["optim"][name], "the optimiser's state")
    if before.update > now.total:
        raise UserError(
            f"{snapshot} has done {before.update} updates, and this run ends after {now.total}. Give it more "
            "(updates=N or epochs=N), or resume an earlier snapshot by resume=PATH"
        )
    now.update, now.seconds = before.update, before.seconds
    now.best_top1, now.best_update = before.best_top1, before.best_update
    state.restore(content, accelerator.process_index, str(snapshot))
    log.info("continuing %s after update %d (%s)", snapshot.parent.parent, now.update, snapshot.name)
    if before.processes != now.processes:
        log.warning(
            "the snapshot was made with %d process(es), now there are %d. The order of the data changes: an update "
            "sees the same pictures, but split in another way, with other mixing and BatchNorm statistics, so its "
            "loss differs",
            before.processes,
            now.processes,
        )
    changed = _differences(old, new)
    if changed:
        log.warning("settings differ from the snapshot's: %s", ", ".join(changed))


def _read_alike(snapshot: Path, accelerator: Accelerator) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and record of a snapshot, the same in all ranks: on a shared disk one may see an older state."""
    content, record, seen = None, None, ""
    try:
        content, record = read_snapshot(snapshot)
        seen = record["sha256"]
    except UserError as error:
        seen = str(error)
    found = gather_object([seen]) if accelerator.num_processes > 1 else [seen]
    if content is None or record is None or len(set(found)) > 1:
        what = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(found)) if len(found) > 1 else seen
        raise UserError(what if content is None else f"{snapshot} is not the same for all ranks: {what}. Try again")
    return content, record


def _refuse_change(snapshot: Path, name: str, old: Any, new: Any, what: str) -> None:
    if old != new:
        raise UserError(
            f"{snapshot} was made with {name}={old}, this run has {new}; {what} would be another. Resume with the old "
            "value, or start anew with resume=none"
        )


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that may change the result and differ, as `key old -> new`."""
    neutral = {"resume", "run_dir", "runs_dir", "checkpoints_dir", "publish", "log", "snapshots", "workers", "prefetch"}
    found = []
    for key in sorted((old.keys() | new.keys()) - neutral):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} {a} -> {b}")
    return found


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
    try:
        checkpoint_folder(library, name, None if settings.overwrite else folder.own_weights() or "")
    except UserError as error:
        name = free_folder(library, name).name
        log.warning("%s. It is published as %s instead", error, name)
    return publish_run(folder.path, name, library, settings.overwrite)
