"""The training loop: record -> batch -> objective -> update -> constraints -> average -> figures -> snapshot."""

from __future__ import annotations

import contextlib
import logging
import time

import torch
from torch import Tensor

from common.constraints import constrain
from common.errors import UserError
from train.averaging import average_buffers
from train.configure import accumulation
from train.data.augment import BatchMixing
from train.data.batch import to_input
from train.data.loader import load, loaders_alive, make_loader
from train.data.order import SampleOrder, TrainingSampler
from train.losses.classification import first_not_finite
from train.meters import by_name, count
from train.optimizers import set_learning_rates
from train.runs.snapshots import clean_snapshots, save_snapshot
from train.runs.state import Undo
from train.session import Session
from train.stopping import Stop, StopListener
from train.validation import Scores, validate
from train.watching.clock import Clock

log = logging.getLogger("train")


@loaders_alive()
def train(session: Session) -> tuple[Stop, dict[str, Scores]]:
    """Train to the end of the schedule, or until the ranks agree to stop.

    Returns:
        Why it stopped early (`Stop.NO` at the end), and the last validation's scores by kind of weights.

    Raises:
        UserError: the loss is not finite, or an image cannot be loaded.
    """
    settings, accelerator, state = session.settings, session.accelerator, session.state
    progress, monitor, device = state.progress, session.monitor, accelerator.device
    rank, world = accelerator.process_index, accelerator.num_processes
    accumulate = accumulation(settings, world)

    # --- data: this process's micro-batches, from the present update to the end
    order = SampleOrder(session.train_source, settings.seed, settings.augment.repeats)
    sampler = TrainingSampler(order, progress.update, progress.total, settings.batch_size, accumulate, rank, world)
    batches = load(make_loader(session.train_source, sampler, settings, device.type == "cuda"))
    mixing = BatchMixing(settings, session.train_source.num_classes, rank)

    # --- what happens when
    validations = _Every(settings.log.validate_every, progress.exact_epoch)
    pictures = _Every(settings.log.pictures_every, progress.exact_epoch)
    last_snapshot = time.monotonic()
    scores: dict[str, Scores] = {}
    bad = torch.full((), -1, dtype=torch.long, device=device)  # first update whose loss was not finite
    listener = StopListener(accelerator.is_main_process)
    undo = Undo(state)
    clock = Clock(progress.seconds)
    logged = progress.update, clock.seconds, clock.waiting

    try:
        session.wrapped.train()
        while progress.update < progress.total:
            update, epoch = progress.update, progress.epoch
            lr = session.schedule(update)
            set_learning_rates(state.optimizer, lr)

            # --- gradient: the mean over the micro-batches of all processes
            if accumulate > 1:
                undo.remember()
            for micro in range(accumulate):
                if micro and (stop := listener.agree()[0]) is not Stop.NO:
                    undo.give_up()
                    _stop_if_not_finite(bad, session)
                    progress.seconds = clock.seconds
                    _save_snapshot(session)
                    return stop, scores
                with clock.data():
                    batch = next(batches)
                images = to_input(batch, session.transform, device, settings.channels_last)
                images, targets = mixing(images, batch.labels.to(device, non_blocking=True), update, micro)
                if update == 0 and micro == 0:
                    with clock.paused():
                        session.watch.first_batch(images)
                last = micro == accumulate - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(session.wrapped):
                    terms = session.objective(session.wrapped, images, targets, epoch, last)
                    accelerator.backward(terms.total)
                bad = first_not_finite(bad, terms.total.detach(), update)
                count(state.meters, terms.counted)

            # --- update: step, constraints, average
            norm = _clip(session)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            constrain(state.model)
            if state.ema:
                state.ema.update()
            taken = norm.isfinite()  # fp16 passes over a step whose gradients overflow
            count(state.meters, {"grad_norm": norm.where(taken, 0), "steps": taken, "updates": torch.ones_like(norm)})
            progress.update += 1
            monitor.advance()

            # --- decisions that all ranks share
            done = progress.update == progress.total
            every, minutes = settings.snapshots.every_updates, settings.snapshots.every_minutes
            due = every is not None and progress.update % every == 0
            late = minutes is not None and time.monotonic() - last_snapshot > 60 * minutes
            stop, due = listener.agree(due or late)
            due = due or stop is not Stop.NO
            validation_due = validations.due(progress.exact_epoch) or done
            pictures_due = pictures.due(progress.exact_epoch) or done

            # --- figures: the only place where the host waits for the device
            if done or due or validation_due or progress.update % settings.log.every == 0:
                _stop_if_not_finite(bad, session)
            if done or progress.update % settings.log.every == 0:
                logged = _log_training(session, lr, clock, logged)
            progress.seconds = clock.seconds
            with clock.paused():
                if validation_due:
                    scores = _validate(session)
                if pictures_due:
                    session.watch.positions(progress.update, state.model)
                if due or done:
                    _save_snapshot(session)
                    last_snapshot = time.monotonic()
            if stop is not Stop.NO and not done:
                return stop, scores
        return Stop.NO, scores or _validate(session, told=session.folder.is_validated(progress.update))
    finally:
        batches.close()  # ends the loader's processes
        listener.close()


def _save_snapshot(session: Session) -> None:
    """Write a snapshot and remove those that are no longer wanted."""
    place, keep = session.folder.snapshots, session.settings.snapshots
    save_snapshot(place, session.state, session.about, session.accelerator.process_index)
    if session.accelerator.is_main_process:
        clean_snapshots(place, keep.keep_last, keep.keep_every)


class _Every:
    """Tells when another so many epochs have passed."""

    def __init__(self, epochs: float, now: float) -> None:
        self.epochs, self.passed = epochs, self._count(now, epochs)

    @staticmethod
    def _count(now: float, epochs: float) -> int:
        return int(now / epochs + 1e-9) if epochs > 0 else 0

    def due(self, now: float) -> bool:
        """Whether one passed since the last call."""
        before, self.passed = self.passed, self._count(now, self.epochs)
        return self.passed > before


def _clip(session: Session) -> Tensor:
    """Clip the gradient if the recipe says so; returns its norm before, on the device."""
    parameters = [p for p in session.state.model.parameters() if p.grad is not None]
    largest = session.settings.optim.clip_grad
    session.accelerator.unscale_gradients(session.state.optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if largest is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def _stop_if_not_finite(bad: Tensor, session: Session) -> None:
    found = session.accelerator.gather(bad.view(1)).tolist()
    if max(found) < 0:
        return
    first = min(update for update in found if update >= 0)
    ranks = [rank for rank, update in enumerate(found) if update == first]
    raise UserError(
        f"the loss is not finite in update {first + 1}, rank {ranks[0]}"
        + (f" (and {len(ranks) - 1} more)" if len(ranks) > 1 else "")
        + f". The last good snapshot stays in {session.folder.snapshots}; try a lower optim.lr, a longer warm-up, "
        "optim.clip_grad=1 or precision=fp32, and resume=auto"
    )


def _log_training(
    session: Session, lr: float, clock: Clock, logged: tuple[int, float, float]
) -> tuple[int, float, float]:
    """Report the means since the last log point and begin anew."""
    state, progress = session.state, session.state.progress
    total = by_name(session.accelerator.reduce(state.meters.clone(), "sum"))
    state.meters.zero_()
    now = progress.update, clock.seconds, clock.waiting
    ran, seconds, waited = (b - a for a, b in zip(logged, now))
    values = {f"train/{name}": mean for name, mean in session.objective.means(total).items()}
    values |= {
        "train/top1": 100 * total["correct"] / total["images"],
        "train/grad_norm": total["grad_norm"] / max(total["steps"], 1.0),
        "lr/weights": lr,
    }
    if any(group["kind"] == "positions" for group in state.optimizer.param_groups):
        values["lr/positions"] = lr * session.settings.positions.lr_scale
    speed = {
        "speed/images_per_second": ran * progress.global_batch / max(seconds, 1e-9),
        "speed/data_share": waited / max(seconds, 1e-9),
        "speed/memory_gib": _memory(session.accelerator.device),
    }
    session.monitor.scalars(progress.update, progress.exact_epoch, {**values, **speed})
    left = (progress.total - progress.update) * seconds / max(ran, 1)
    shown = {"loss": f"{values['train/loss']:.4g}", "top-1": f"{values['train/top1']:.2f} %", "lr": f"{lr:.4g}"}
    shown["images/s"] = f"{speed['speed/images_per_second']:.4g}"
    shown["waiting for data"] = f"{100 * speed['speed/data_share']:.1f} %"
    session.monitor.line(progress.update, progress.exact_epoch, shown, left)
    return now


def _memory(device: torch.device) -> float:
    """Largest memory in use so far, in GiB: the GPU's, or this process's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _validate(session: Session, told: bool = False) -> dict[str, Scores]:
    """Score raw and averaged weights, with BatchNorm statistics averaged over the processes.

    `told`: the figures are in the run's curves already, as those of a finished run that is taken up again.
    """
    state, progress = session.state, session.state.progress
    models = {"raw": state.model, **({"ema": state.ema.model} if state.ema else {})}
    average_buffers(*models.values())
    scores = validate(models, session.val_loader, session.settings, session.transform, session.accelerator)
    chosen = scores[session.settings.publish_weights]
    if chosen.top1 > progress.best_top1:
        progress.best_top1, progress.best_update = chosen.top1, progress.update
    values = {f"val_{kind}/{name}": value for kind, s in scores.items() for name, value in vars(s).items()}
    values = {name: value for name, value in values.items() if not name.endswith("/images")}
    moved = session.watch.displacement(state.model)
    if moved is not None:
        values["positions/mean_displacement_px"] = moved
    if not told:
        session.monitor.scalars(progress.update, progress.exact_epoch, values)
    shown = {f"{kind} top-1": f"{s.top1:.2f} %" for kind, s in scores.items()}
    shown |= {f"{kind} loss": f"{s.loss:.4g}" for kind, s in scores.items()}
    if moved is not None:
        shown["positions moved"] = f"{moved:.3g} px"
    session.monitor.line(progress.update, progress.exact_epoch, {**shown, "on images": str(chosen.images)})
    return scores
