"""What every data set offers, and what it hands out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor


class Source(NamedTuple):
    """Where a data set lies, as it was typed."""

    root: Path = Path()
    """`--data-root`; the current folder where none is given."""
    pattern: str = ""
    """What follows the colon of `--data NAME:PATTERN`."""
    labels: Path | None = None
    """`--labels`: a table of labels."""


class ModelView(NamedTuple):
    """What a data set may depend on of the model that is to see it."""

    size: int
    """Side in pixels to which the model resizes an image."""
    num_classes: int
    classes: tuple[str, ...] | None = None
    """Name of every class, in order of index, where the checkpoint says it."""


class Picture(NamedTuple):
    """One image before a model's transform."""

    image: Image.Image
    """RGB."""
    human: Tensor | None
    """The human map as stored; `EvalData.human_maps` makes the final one."""
    label: int
    """Class index."""
    image_id: str
    """Stable and unique within the data set."""
    boxes: list[list[float]] | None = None
    """The labelled objects, (x0, y0, x1, y1) each, in pixels of `image`; None where the data set has none."""


class EvalData(ABC):
    """A data set to measure on; picklable, holding no pictures.

    A data set that is one and the same for every model takes the folder as its only argument and is opened by what
    stands here; another one has an `opener` of its own.
    """

    name: str
    """As people type it."""
    layout: str = ""
    """What the folder named by `--data-root` holds; empty where it needs none."""
    pattern: str = ""
    """What is typed after the name and a colon, in capitals; empty for nothing."""
    ceiling: float | None = None
    """Mean Spearman correlation between people, by which alignment is divided; None where there is none."""
    has_human_maps: bool = True
    has_boxes: bool = False
    """Whether pictures come with the boxes of their objects."""
    num_classes: int = 1000
    class_names: list[str] | None = None
    place: str = ""
    """Where it lies; empty for data that are made."""
    missing_parts: str = ""
    """What of the published data set is not there, in words; scores are then marked partial."""

    @classmethod
    def opener(cls, source: Source) -> Callable[[ModelView], EvalData]:
        """The data set for a model; models that see it alike share one.

        Raises:
            UserError: it is not there, or none that can be read.
        """
        data = cls(source.root)  # type: ignore[call-arg]
        return lambda model: data

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def picture(self, index: int) -> Picture:
        """Read one picture; raises `UserError` naming it when it cannot be read."""

    def human_maps(self, stored: Tensor) -> Tensor:
        """Stored human maps of a batch -> (B, S, S) float32, covering the whole frame of the picture."""
        return stored.float()

    @abstractmethod
    def fingerprint(self) -> str:
        """Short hash of what the data set consists of, without reading the pictures.

        Results of a file that has been replaced since are never taken for those of the new one.
        """


def hash_of(parts: Iterable[object]) -> str:
    """Short hash of some things, by their texts."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()[:16]


def state_of(path: Path) -> tuple[int, int] | None:
    """What changes with a file's content, without reading it: bytes and nanoseconds; None where it cannot be seen."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


@dataclass
class Batch:
    """One batch, still on the CPU."""

    pixels: Tensor
    """(B, 3, crop, crop) uint8: what the model sees."""
    human: Tensor | None
    """(B, ...) stored human maps."""
    labels: Tensor
    """(B,) int64."""
    indices: Tensor
    """(B,) int64, place in the data set."""
    image_ids: list[str]
    boxes: list[Tensor] | None = None
    """For each image its objects (n, 4), x0, y0, x1, y1 in pixels of `pixels`, not clipped."""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: slice) -> Batch:
        """Some of its images."""
        return Batch(
            self.pixels[rows],
            None if self.human is None else self.human[rows],
            self.labels[rows],
            self.indices[rows],
            self.image_ids[rows],
            None if self.boxes is None else self.boxes[rows],
        )


class Read(NamedTuple):
    """What became of the pictures of one batch."""

    batch: Batch | None
    """None where none could be read."""
    bad: list[str]
    """What is wrong with those that could not."""
