"""The data sets a model is measured on, behind one interface, and their loader."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.decoding import open_image
from common.errors import UserError
from common.folders import imagenet_names, imagenet_places, scan_class_folders
from common.scenes import CLASS_NAMES, SceneConfig, Scenes
from common.text import one_line
from common.transform import ModelTransform
from evaluate.clickme import HUMAN_CEILING, ClickMe, blur_human_map, paper_image
from evaluate.labels import Box, read_labels
from evaluate.metrics.boxes import boxes_in_view

SCENES_COUNT = 1000


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
    """A data set to measure on; picklable, holding no pictures."""

    name: str
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


class ClickMeData(EvalData):
    """ClickMe photographs and human maps (see `evaluate.clickme`)."""

    name = "clickme"
    ceiling = HUMAN_CEILING

    def __init__(self, root: Path) -> None:
        self.records = ClickMe(root)
        if absent := self.records.missing_shards:
            self.missing_parts = f"{len(absent)} published shards absent"
        self.class_names = names_of_classes(self.num_classes)
        self.place = str(root.resolve())

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> Picture:
        """The 224 px image the study feeds to the models' own transforms; the human map is still unblurred."""
        record = self.records[index]
        pixels = paper_image(torch.from_numpy(record.image)[None])[0].permute(1, 2, 0).numpy()
        return Picture(Image.fromarray(pixels), torch.from_numpy(record.heatmap), record.label, record.image_id)

    def human_maps(self, stored: Tensor) -> Tensor:
        """(B, 256, 256) uint8 -> (B, 224, 224), blurred as ClickMe's own code does."""
        return blur_human_map(stored)

    def fingerprint(self) -> str:
        """Hash of the shards' names, sizes and times of modification."""
        return _hash((shard.name, _state(shard)) for shard in self.records.shards)


class ScenesData(EvalData):
    """Generated scenes that no training run has seen (their validation split)."""

    name = "scenes"
    has_boxes = True
    num_classes = len(CLASS_NAMES)

    def __init__(self, size: int, count: int = SCENES_COUNT, config: SceneConfig | None = None) -> None:
        config = config or SceneConfig()
        self.scenes = Scenes(count, SceneConfig(size, config.difficulty, config.seed), "val")
        self.class_names = list(CLASS_NAMES)

    def __len__(self) -> int:
        return len(self.scenes)

    def picture(self, index: int) -> Picture:
        """One scene, at the size the model takes."""
        scene = self.scenes[index]
        image = Image.fromarray(scene.image.permute(1, 2, 0).contiguous().numpy())
        return Picture(image, scene.human_map, scene.label, f"val/{index:06d}", [[float(v) for v in scene.box]])

    def fingerprint(self) -> str:
        """Hash of what the scenes are a function of."""
        return _hash([f"{self.scenes.config} {len(self)}"])


class FolderData(EvalData):
    """Photographs without human maps: class folders, or one folder with a table of labels.

    Args:
        root: a folder of class folders, or any folder if `labels` is given. Folders named as `classes` are, are
            those; where all bear WordNet ids they mean ImageNet's; else they count in sorted order.
        labels: see `evaluate.labels`.
        num_classes: of the model that a table's labels belong to.
        classes: names of the model's classes, in order of index, where known.

    Raises:
        UserError: nothing there, a class folder without pictures, a damaged table, a label out of range.
    """

    name = "imagefolder"
    has_human_maps = False

    def __init__(
        self, root: Path, labels: Path | None = None, num_classes: int = 1000, classes: Sequence[str] | None = None
    ) -> None:
        if not root.is_dir():
            raise UserError(f"no data folder at {root}; give --data-root the folder that holds the pictures")
        self.root = root
        self.place = str(root.resolve())
        self.boxes: list[list[Box]] | None = None
        if labels:
            self.files, self.labels, self.boxes = read_labels(labels, num_classes)
            self.num_classes = num_classes
        else:
            self.files, self.labels, self.num_classes = _from_folders(root, classes)
        self.has_boxes = self.boxes is not None
        self.class_names = names_of_classes(self.num_classes, classes)

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, index: int) -> Picture:
        """Decode one photograph."""
        name = self.files[index]
        boxes = self.boxes[index] if self.boxes else None
        return Picture(open_image(self.root / name), None, self.labels[index], one_line(name), boxes)

    def fingerprint(self) -> str:
        """Hash of the files' names, sizes and times of modification, their labels and boxes."""
        states = (_state(self.root / name) for name in self.files)
        return _hash(zip(self.files, states, self.labels, self.boxes or self.labels))


def names_of_classes(count: int, classes: Sequence[str] | None = None) -> list[str] | None:
    """What to call a model's classes: by their names where known, by ImageNet's where they are 1000, else None."""
    if classes is None and count == 1000:
        classes = imagenet_names()
    if classes == imagenet_names():
        return [name.partition(",")[0] for name in classes]  # without the synonyms
    return [one_line(name) for name in classes] if classes else None


def _from_folders(root: Path, classes: Sequence[str] | None) -> tuple[list[str], list[int], int]:
    """Files relative to the root, their labels, and how many classes there are."""
    names, files, labels = scan_class_folders(root, f"{root}/CLASS/picture.jpg, or a table by --labels FILE.csv")
    places = imagenet_places(names)
    if classes is not None and set(names) <= set(classes):
        labels, count = np.array([classes.index(name) for name in names])[labels], len(classes)
    elif places is not None:
        labels, count = places[labels], 1000
    elif classes is not None and len(classes) == len(names):
        raise UserError(
            f"{root} has the classes {', '.join(names[:5])}, ..., the checkpoint {', '.join(classes[:5])}, ...; name "
            "the folders as the classes it was trained on"
        )
    else:
        count = len(names)
    return [os.path.relpath(file, root) for file in files], labels.tolist(), count


def _hash(parts: Iterable[object]) -> str:
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()[:16]


def _state(path: Path) -> tuple[int, int] | None:
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


_Item = tuple[Tensor, Tensor | None, int, int, str, Tensor | None]


class _Items(Dataset[_Item | UserError]):
    """Pictures through a model's geometry, for the loader's workers."""

    def __init__(self, data: EvalData, transform: ModelTransform) -> None:
        self.data, self.transform, self.geometry = data, transform, transform.geometry()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> _Item | UserError:
        try:
            picture = self.data.picture(index)
        except UserError as error:  # told by whoever asked for the batch: the loader would wrap it in a traceback
            return error
        boxes = None
        if picture.boxes is not None:
            boxes = boxes_in_view(
                torch.tensor(picture.boxes).reshape(-1, 4), picture.image.width, picture.image.height, self.transform
            )
        return self.geometry(picture.image), picture.human, picture.label, index, picture.image_id, boxes


def _collate(items: list[_Item | UserError]) -> Read:
    bad = [str(item) for item in items if isinstance(item, UserError)]
    good = [item for item in items if not isinstance(item, UserError)]
    if not good:
        return Read(None, bad)
    pixels, human, labels, indices, ids, boxes = zip(*good)
    maps = None if human[0] is None else torch.stack(human)
    objects = None if boxes[0] is None else list(boxes)
    numbers = torch.tensor(labels), torch.tensor(indices)
    return Read(Batch(torch.stack(pixels), maps, *numbers, list(ids), objects), bad)


def read_batches(
    data: EvalData, transform: ModelTransform, batches: Sequence[list[int]], workers: int
) -> Iterator[Read]:
    """The pictures of each batch in turn, read and transformed by `workers` processes that live until the last.

    Args:
        data: where they are.
        transform: of the model.
        batches: places in the data set.
        workers: processes; 0 reads here.
    """
    items = _Items(data, transform)
    yield from DataLoader(items, batch_sampler=batches, collate_fn=_collate, num_workers=workers)


def in_batches(indices: Sequence[int], size: int) -> list[list[int]]:
    """Places in the data set, so many at a time."""
    return [[int(index) for index in indices[start : start + size]] for start in range(0, len(indices), size)]


def load_batches(
    data: EvalData, transform: ModelTransform, indices: Sequence[int], batch_size: int, workers: int
) -> Iterator[Batch]:
    """The pictures at `indices` in that order, in batches; see `read_batches`.

    Raises:
        UserError: a picture cannot be read.
    """
    for batch, bad in read_batches(data, transform, in_batches(indices, batch_size), workers):
        if bad:
            raise UserError(bad[0])
        assert batch is not None
        yield batch


def choose_indices(count: int, limit: int | None, seed: int) -> np.ndarray:
    """All indices, or a seeded random subset of `limit` of them, in ascending order."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))
