"""The processes that load batches: how many, when they start, and the message when one of them fails."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info

from common.errors import UserError, first_line
from common.workers import died
from train.data.batch import Batch, BatchSource, LoadFailure, SampleKey
from train.settings import Settings
from train.stopping import obey_parent, signals_wait

_ROOM = (
    "Docker's /dev/shm is too small (docker run --ipc=host, or --shm-size=16g); fewer data.workers or a smaller "
    "batch_size need less memory"
)


class LocalError(UserError):
    """An error that one process meets alone, so that it must speak for itself."""


def default_workers() -> int:
    """Loader processes for this one of the machine's training processes: its cores but one, at most 12."""
    cores = len(os.sched_getaffinity(0))
    mine = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(mine - 1, 1), 12) if cores > 1 else 0


def _share(batch: Batch | LoadFailure) -> Batch | LoadFailure:
    """Put a batch where the trainer can read it. torch would, too, but when it fails the trainer waits for ever."""
    if get_worker_info() is None or isinstance(batch, LoadFailure):
        return batch
    try:
        for tensor in (batch.images, batch.labels, *(batch.erasing or ())):
            tensor.share_memory_()
    except RuntimeError as error:
        return LoadFailure(f"no room for a batch in shared memory ({first_line(error)}). {_ROOM}")
    return batch


def make_loader(
    source: BatchSource, sampler: Sampler[list[SampleKey]], settings: Settings, pin: bool, stays: bool = False
) -> DataLoader[Batch]:
    """The loader of a sampler's batches, with `data.workers` processes.

    With `stays` its processes start now, get one batch ready each, and serve every pass. Python 3.11 may hang in a
    process that is forked while a thread of gloo, done with a collective operation, calls into Python; at the start of
    a run none does.
    """
    wanted = default_workers() if settings.data.workers is None else settings.data.workers
    workers = min(wanted, len(sampler))  # type: ignore[arg-type]
    ahead = 1 if stays else settings.data.prefetch
    loader: DataLoader[Batch] = DataLoader(
        source,  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_share,  # type: ignore[arg-type]
        pin_memory=pin,
        worker_init_fn=obey_parent if workers else None,
        prefetch_factor=ahead if workers else None,
        persistent_workers=stays and workers > 0,
        generator=torch.Generator(),  # else the loader would draw from the generator that the model's layers use
    )
    if stays and workers:
        with signals_wait():
            iter(loader)
    return loader


def load(loader: DataLoader[Batch]) -> Generator[Batch]:
    """One pass over a loader's batches.

    Raises:
        LocalError: an image could not be loaded, or there is no room for a batch.
    """
    with signals_wait():  # the loader's processes may start here
        batches = iter(loader)
    for batch in batches:
        if isinstance(batch, LoadFailure):
            raise LocalError(batch.message)
        yield batch


@contextmanager
def loaders_alive() -> Iterator[None]:
    """Says in one line that a loader's process died, which torch raises at whatever line the trainer has come to.

    Raises:
        LocalError: one died.
    """
    try:
        yield
    except RuntimeError as error:
        if (told := died(error)) is None:
            raise
        raise LocalError(f"{told}. {_ROOM}") from error
