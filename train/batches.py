"""Batches, in an order that depends on (seed, epoch) alone.

The training samples form one endless sequence: the order of epoch 0, that of epoch 1, and so on. Update u takes
samples u*G to (u+1)*G of it (G the global batch), so an epoch neither loses nor doubles a sample, its last
batch runs on into the next epoch, and the place to resume from is the number of updates done. Each micro-batch
of each process is a contiguous piece of that range. Neither workers nor processes change what an update sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from common.decoding import decode_image
from common.errors import UserError
from common.scenes import CLASS_NAMES, SceneConfig, render_scenes
from common.transform import ModelTransform
from common.zoo import lookup
from train.augment import model_transform, training_transform
from train.erasing import Erasing, PatchDraw
from train.randomness import seeded
from train.settings import Settings
from train.shards import open_shards
from train.sources import Records, open_folders, open_hub, open_scenes

SOURCES = ("imagefolder", "scenes", "scenes:jpeg", "hf:REPOSITORY", "parquet:PATTERN", "webdataset:PATTERN")


class SampleKey(NamedTuple):
    """What a training sample is a function of, besides the seed."""

    epoch: int
    sample: int
    """Its index in the data set."""
    repeat: int
    """Which of the versions that repeated augmentation makes."""


class Batch(NamedTuple):
    """What the loader's processes hand over; `to_input` makes the model's input of it."""

    images: Tensor
    """Raw pixels, uint8 (B, 3, H, W)."""
    labels: Tensor
    """int64 (B,)."""
    erasing: Erasing | None = None
    """What replaces parts of the pictures once they are normalised."""


@dataclass
class LoadFailure:
    """Takes a batch's place when a picture could not be loaded, so that a worker's error arrives as one line."""

    message: str


class BatchSource(Protocol):
    """A part (training or validation) of the data, whole batches at a time."""

    classes: list[str] | None
    """Class names by index, where known."""
    num_classes: int
    """Labels lie below it."""

    def __len__(self) -> int: ...

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Every index once, in the order of an epoch."""

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch | LoadFailure:
        """The samples of the keys; called by torch's DataLoader with a whole batch."""


class Photographs(Dataset[Batch]):
    """Pictures of a data set, augmented for training or put through the model's own transform."""

    def __init__(self, records: Records, settings: Settings, training: bool) -> None:
        self.records, self.classes, self.seed = records, records.classes, settings.seed
        known = len(records.classes) if records.classes else lookup(settings.model).num_classes
        self.num_classes = settings.num_classes or known
        self.transform = training_transform(settings) if training else model_transform(settings).geometry()
        self.draw_patch = PatchDraw(settings) if training and settings.augment.erase_prob > 0 else None

    def __len__(self) -> int:
        return len(self.records)

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """See `BatchSource`."""
        return self.records.order(seed, epoch)

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch | LoadFailure:
        images, labels, patches = [], [], []
        try:
            for key in keys:
                record = self.records.read(key.sample)
                picture = decode_image(record.content, record.where)
                with seeded(self.seed, *key):
                    images.append(self.transform(picture))
                    if self.draw_patch:
                        patches.append(self.draw_patch())
                labels.append(record.label)
                if not 0 <= record.label < self.num_classes:
                    raise UserError(
                        f"{record.where}: label {record.label}, but the model has {self.num_classes} outputs; "
                        "num_classes=N sets how many"
                    )
        except UserError as error:
            return LoadFailure(str(error))
        return Batch(torch.stack(images), torch.tensor(labels), Erasing.pack(patches) if self.draw_patch else None)


class RenderedScenes(Dataset[Batch]):
    """Generated scenes; those of training are new in every epoch and need no augmentation."""

    def __init__(self, settings: Settings, training: bool) -> None:
        data = settings.data
        self.classes: list[str] | None = list(CLASS_NAMES)
        self.num_classes = settings.num_classes or len(CLASS_NAMES)
        if self.num_classes < len(CLASS_NAMES):
            raise UserError(f"num_classes={self.num_classes}: scenes have {len(CLASS_NAMES)} classes")
        self.count = data.train_images if training else data.val_images
        size = data.image_size if training else model_transform(settings).crop
        self.config = SceneConfig(size, data.difficulty, data.scene_seed)
        self.training = training

    def __len__(self) -> int:
        return self.count

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """See `BatchSource`. As they come: their classes are drawn in random order already."""
        return np.arange(self.count)

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        parts = []
        for epoch in sorted({key.epoch for key in keys}):  # a batch that spans two epochs is rendered in two parts
            indices = [key.sample for key in keys if key.epoch == epoch]
            parts.append(render_scenes(indices, self.config, "train" if self.training else "val", epoch, False))
        return Batch(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))


def open_data(settings: Settings) -> tuple[BatchSource, BatchSource]:
    """The training and the validation part of `data.source`.

    Raises:
        UserError: the source is unknown, missing, empty or not laid out as expected.
    """
    kind, _, place = settings.data.source.partition(":")
    if settings.data.source == "scenes":
        return RenderedScenes(settings, True), RenderedScenes(settings, False)
    if settings.data.source == "scenes:jpeg":
        train, val = open_scenes(settings.data, model_transform(settings).resize)
    elif settings.data.source == "imagefolder":
        train, val = open_folders(settings.data)
    elif kind == "hf" and place:
        train, val = open_hub(place, settings.data)
    elif kind in ("parquet", "webdataset") and place:
        train, val = open_shards(kind, place, settings.data)
    else:
        raise UserError(f"data.source={settings.data.source!r}: take one of {', '.join(SOURCES)}")
    return Photographs(train, settings, True), Photographs(val, settings, False)


def to_input(batch: Batch, transform: ModelTransform, device: torch.device, channels_last: bool) -> Tensor:
    """The model's input float32 (B, 3, H, W): a batch's pixels, normalised and erased on the device."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = transform.normalise(batch.images.to(device, non_blocking=True).contiguous(memory_format=layout))
    if batch.erasing is not None:
        batch.erasing.erase(images)
    return images


class SampleOrder:
    """The endless sequence of training samples."""

    def __init__(self, source: BatchSource, seed: int, repeats: int = 1) -> None:
        self.count, self.repeats = len(source), repeats
        self.epoch_order = lru_cache(maxsize=2)(lambda epoch: self._epoch_order(source, seed, epoch))

    def _epoch_order(self, source: BatchSource, seed: int, epoch: int) -> NDArray[np.int64]:
        # With r repeats an epoch is as long as ever: it holds r versions of every r-th picture of the order.
        return np.repeat(source.order(seed, epoch), self.repeats)[: self.count]

    def keys(self, start: int, stop: int) -> list[SampleKey]:
        """Samples `start` to `stop` of the sequence."""
        keys = []
        for place in range(start, stop):
            epoch, slot = divmod(place, self.count)
            keys.append(SampleKey(epoch, int(self.epoch_order(epoch)[slot]), slot % self.repeats))
        return keys


class TrainingSampler(Sampler[list[SampleKey]]):
    """Micro-batches of one process, from update `start` to update `stop`."""

    def __init__(
        self, order: SampleOrder, start: int, stop: int, batch_size: int, accumulate: int, rank: int, world: int
    ) -> None:
        self.order, self.start, self.stop = order, start, stop
        self.batch_size, self.accumulate, self.rank, self.world = batch_size, accumulate, rank, world

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for micro in range(self.start * self.accumulate, self.stop * self.accumulate):
            first = (micro * self.world + self.rank) * self.batch_size
            yield self.order.keys(first, first + self.batch_size)


class ValidationSampler(Sampler[list[SampleKey]]):
    """Batches of every `world`-th picture, from the `rank`-th on: each picture once, over all processes."""

    def __init__(self, count: int, batch_size: int, rank: int, world: int) -> None:
        self.mine = range(rank, count, world)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for first in range(0, len(self.mine), self.batch_size):
            yield [SampleKey(0, index, 0) for index in self.mine[first : first + self.batch_size]]
