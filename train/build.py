"""From settings to all that the training loop works with.

Initial values, in this order: the model's own initialisation from `seed`; weights of the plain model if `pretrained`
or `init_from`; the DCLS surgery, if there is one; the snapshot if `resume` finds one, which replaces everything.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import nn
from torch.utils.data import DataLoader

from common.errors import UserError
from common.launched import refuse_strangers
from common.models.zoo import crashes_channels_last, create_plain, operate
from common.start import load_plain
from common.surgery import position_groups, set_depthwise
from train.averaging import Ema
from train.configure import accumulation, as_dict, dcls_spec
from train.data.augment import model_transform
from train.data.batch import Batch, BatchSource
from train.data.images import open_data
from train.data.loader import loaders_alive, make_loader
from train.data.order import ValidationSampler
from train.losses.objective import Objective
from train.meters import new_meters
from train.optimizers import Schedule, create_optimizer
from train.randomness import key_seed
from train.runs.resume import choose_folder, take_on
from train.runs.run_folder import RunFolder
from train.runs.snapshots import clean_snapshots
from train.runs.state import Progress, TrainState
from train.session import Session
from train.settings import Settings
from train.stopping import PATIENCE
from train.watching.console import table
from train.watching.displacement import positions_of
from train.watching.monitor import Monitor
from train.watching.remarks import remarks
from train.watching.watch import Watch

log = logging.getLogger("train")


def make_accelerator(settings: Settings) -> Accelerator:
    """Accelerate as a run of these settings needs it.

    Raises:
        UserError: the precision needs a GPU, or the launcher asks for more than plain data parallelism.
    """
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
def build(settings: Settings, accelerator: Accelerator, command: str, stack: ExitStack) -> Session:
    """All that the loop works with, new or as the snapshot left it. The order of the steps is law.

    Raises:
        UserError: something of it cannot be made.
    """
    micro_batches = accumulation(settings, accelerator.num_processes)  # refuses what does not fit at once
    folder, snapshot = choose_folder(settings, accelerator, stack)
    train_source, val_loader = _open_data(settings, accelerator)
    state, wrapped, schedule = _create_state(settings, accelerator, train_source)
    objective = Objective(state.model, settings, micro_batches)
    torch.manual_seed(key_seed(settings.seed, accelerator.process_index) % 2**63)  # drop path differs between ranks
    if snapshot is not None:
        take_on(state, snapshot, settings, accelerator)
    accelerator.wait_for_everyone()
    about: dict[str, Any] = {"settings": as_dict(settings), "command": command, "classes": train_source.classes}
    if accelerator.is_main_process:
        _prepare_folder(folder, about, settings, state.progress.update if snapshot is not None else None)
    monitor = Monitor(
        folder, accelerator.is_main_process, state.progress.total, state.progress.update, settings.log.tensorboard
    )
    transform = model_transform(settings)
    watch = Watch(monitor, transform, state.initial)
    session = Session(
        settings, accelerator, state, wrapped, objective, schedule, train_source, val_loader, transform, folder, about,
        monitor, watch,
    )  # fmt: skip
    _announce(session, resuming=snapshot is not None)
    return session


def _open_data(settings: Settings, accelerator: Accelerator) -> tuple[BatchSource, DataLoader[Batch]]:
    """The training data, and the loader of this process's share of the validation data."""
    rank, world = accelerator.process_index, accelerator.num_processes
    train_source, val_source = open_data(settings)
    mine = ValidationSampler(len(val_source), settings.eval_batch_size or settings.batch_size, rank, world)
    val_loader = make_loader(val_source, mine, settings, accelerator.device.type == "cuda", stays=True)
    if settings.num_classes is None:
        settings.num_classes = train_source.num_classes
    return train_source, val_loader


def _create_state(
    settings: Settings, accelerator: Accelerator, train_source: BatchSource
) -> tuple[TrainState, nn.Module, Schedule]:
    """Model, average, optimiser and schedule before the first update; and the model as Accelerate wraps it."""
    model = _create_model(settings, accelerator)
    ema = Ema(model, settings.ema.decay, settings.ema.warmup) if settings.ema.decay is not None else None
    optimizer = create_optimizer(model, settings.optim, settings.positions, accelerator.device)
    per_epoch = len(train_source) / settings.global_batch
    schedule = Schedule(settings.schedule, settings.optim.lr, settings.epochs, per_epoch, settings.updates)
    if settings.compile:
        for compiled in (model, ema.model if ema else None):
            if compiled is not None:
                compiled.compile()  # in place, so that no name gets a prefix
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    progress = Progress(
        schedule.updates, settings.seed, len(train_source), settings.global_batch, accelerator.num_processes
    )
    meters = new_meters(accelerator.device)
    state = TrainState(progress, model, optimizer, ema, accelerator.scaler, meters, positions_of(model))
    return state, wrapped, schedule


def _prepare_folder(folder: RunFolder, about: dict[str, Any], settings: Settings, update: int | None) -> None:
    """A new run's folder, or that of one which goes on after `update`."""
    if update is None:
        folder.start(**about)
        return
    folder.turn_back(update)
    clean_snapshots(folder.snapshots, settings.snapshots.keep_last, settings.snapshots.keep_every)
    folder.describe(**about)


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
    for group in position_groups(model):  # not images, although they have four dimensions
        for values in (group.positions, group.sigma):
            if values is not None:
                values.data = values.data.contiguous()
    return model


def _announce(session: Session, resuming: bool) -> None:
    """Say what is about to run, and write down what a new run was told."""
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
            f"{progress.global_batch} images = {progress.processes} process(es) x "
            f"{accumulation(settings, progress.processes)} x {settings.batch_size}, {settings.precision}, "
            f"{session.accelerator.device.type}",
        ),
    ]
    rows += remarks(session.train_source, val_source, settings, session.accelerator.device)
    log.info("%s\n%s", "resumed run" if resuming else "new run", table(rows))
    if not resuming:
        session.monitor.text("settings", yaml.safe_dump(as_dict(settings), sort_keys=False))
        session.monitor.text("command", session.about["command"])
        session.watch.positions(0, session.state.model)
