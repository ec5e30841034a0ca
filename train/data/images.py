"""The data sets of training and validation, whole batches at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from common.data.decoding import decode_image
from common.data.records import Records, open_scenes
from common.data.scenes import CLASS_NAMES, SceneConfig, render_scenes
from common.data.shards import open_shards
from common.data.tables import open_folders, open_hub
from common.errors import UserError
from common.models.zoo import lookup
from train.data.augment import model_transform, training_transform
from train.data.batch import Batch, BatchSource, LoadFailure, SampleKey
from train.data.erasing import Erasing, PatchDraw
from train.randomness import seeded
from train.settings import Settings

SOURCES = ("imagefolder", "scenes", "scenes:jpeg", "hf:REPOSITORY", "parquet:PATTERN", "webdataset:PATTERN")


class Photographs(Dataset[Batch]):
    """Images of a data set, augmented for training or put through the model's own transform."""

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
                image = decode_image(record.content, record.where)
                with seeded(self.seed, *key):
                    images.append(self.transform(image))
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
