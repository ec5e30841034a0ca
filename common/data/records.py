"""Data sets of images, map-style: every image has an index, and any of them can be read.

Tables (`common.data.tables`) are memory-mapped, and shards (`common.data.shards`) are read picture by picture, so no
data set is ever held in memory whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from common.data.scene_random import Split
from common.data.scenes import CLASS_NAMES, SceneConfig, render_scenes
from common.errors import UserError


class Places(Protocol):
    """Where the pictures of a data set lie, see `train.settings.DataSettings`."""

    root: str | None
    val_root: str | None
    val_fraction: float
    train_split: str
    val_split: str
    train_images: int
    val_images: int
    difficulty: float
    scene_seed: int


class Record(NamedTuple):
    """One encoded picture."""

    content: bytes
    """The file as it is."""
    label: int
    """Index of its class."""
    where: str
    """File or record, for messages."""
    more: Mapping[str, Any] = {}
    """Values of the further columns that were asked for and are there."""


def checked_record(content: Any, label: Any, where: str, more: Mapping[str, Any] | None = None) -> Record:
    """A record of what a file holds.

    Raises:
        UserError: it holds no picture, or no label that is a whole number.
    """
    if not isinstance(content, bytes):
        raise UserError(f"{where}: no picture; fill it in or take the row out")
    if type(label) is not int:
        raise UserError(f"{where}: label {label!r}; a label is a class index")
    return Record(content, label, where, more or {})


class Records(Protocol):
    """A data set of encoded pictures."""

    classes: list[str] | None
    """Class names by index, where known."""
    labels: NDArray[np.int64] | None
    """Label of every picture, where known before the pictures are read."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Record:
        """The picture of an index."""

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Every index once, in the order of an epoch; a function of its arguments alone."""


def shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of `count` indices that depends on (seed, epoch) alone."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


class Selection:
    """Some records of a data set, by index."""

    def __init__(self, records: Records, indices: NDArray[np.int64]) -> None:
        self.records, self.indices, self.classes = records, indices, records.classes
        self.labels: NDArray[np.int64] | None = None if records.labels is None else records.labels[indices]
        self.place = np.full(len(records), -1)
        self.place[indices] = np.arange(len(indices))

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Record:
        """See `Records`."""
        return self.records.read(int(self.indices[index]))

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """See `Records`; the order of the whole data set, without the others."""
        places = self.place[self.records.order(seed, epoch)]
        return places[places >= 0]


class SceneRecords:
    """Generated scenes as JPEG files, which take every step that photographs take without a data set at hand."""

    labels: NDArray[np.int64] | None = None

    def __init__(self, count: int, config: SceneConfig, split: Split) -> None:
        self.count, self.config, self.split = count, config, split
        self.classes: list[str] | None = list(CLASS_NAMES)

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Record:
        """See `Records`."""
        scene = render_scenes([index], self.config, self.split, 0, False)
        pixels = np.ascontiguousarray(scene.images[0].permute(1, 2, 0).numpy())
        return Record(simplejpeg.encode_jpeg(pixels, 95), int(scene.labels[0]), f"scene {index}")

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """See `Records`."""
        return shuffled(self.count, seed, epoch)


def open_scenes(data: Places, size: int) -> tuple[Records, Records]:
    """Training and validation pictures of `scenes:jpeg`, of `size` pixels a side."""
    config = SceneConfig(size, data.difficulty, data.scene_seed)
    return SceneRecords(data.train_images, config, "train"), SceneRecords(data.val_images, config, "val")


def hold_out(records: Records, fraction: float, where: str) -> tuple[Records, Records]:
    """Split into training and validation records: the same random share of the pictures in every run.

    Raises:
        UserError: no fraction given, or it leaves one side empty.
    """
    count = round(len(records) * fraction)
    if fraction <= 0 or count == 0 or count == len(records):
        raise UserError(
            f"{where} has no validation part and data.val_fraction={fraction} of its {len(records)} pictures leaves "
            "none for one side; give data.val_root=FOLDER or another data.val_fraction"
        )
    mixed = shuffled(len(records), 0, 0)
    return Selection(records, np.sort(mixed[count:])), Selection(records, np.sort(mixed[:count]))
