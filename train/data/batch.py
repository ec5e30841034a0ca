"""What a data set is asked for and hands out, and how it becomes a model's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.models.transform import ModelTransform
from train.data.erasing import Erasing


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
    """What replaces parts of the images once they are normalised."""


@dataclass
class LoadFailure:
    """Takes a batch's place when an image could not be loaded, so that a worker's error arrives as one line."""

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


def to_input(batch: Batch, transform: ModelTransform, device: torch.device, channels_last: bool) -> Tensor:
    """The model's input float32 (B, 3, H, W): a batch's pixels, normalised and erased on the device."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = transform.normalise(batch.images.to(device, non_blocking=True).contiguous(memory_format=layout))
    if batch.erasing is not None:
        batch.erasing.erase(images)
    return images
