"""What `train` reads, as data sets of the evaluation: Parquet files, webdataset tars, repositories of `datasets`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.decoding import decode_image
from common.data.folders import imagenet_places, names_of_classes
from common.data.records import Records
from common.data.shards import ShardRecords, open_pattern
from common.errors import UserError
from common.text import one_line
from evaluate.data.interface import EvalData, ModelView, Picture, Source, hash_of, state_of

if TYPE_CHECKING:
    from common.data.tables import TableRecords

BOX_COLUMNS = ("boxes", "box")
"""Columns that may hold the objects of an image: several boxes, or one."""


class RecordsData(EvalData):
    """Encoded images and labels without human maps; with boxes where there is a column of `BOX_COLUMNS`.

    Args:
        records: to be read.
        has: columns of `BOX_COLUMNS` that every record has.
        model: that is to see them. Names of classes that are among its own are those; WordNet ids of a part of
            ImageNet's classes mean ImageNet's; else labels are the model's as they stand.

    Raises:
        UserError: as many classes as the model's, of other names.
    """

    has_human_maps = False

    def __init__(self, records: Records, has: Sequence[str], model: ModelView) -> None:
        self.records = records
        self.has_boxes = bool(has)
        self.column = next((name for name in BOX_COLUMNS if name in has), None)
        self.num_classes = model.num_classes
        self.places: list[int] | None = None
        if records.classes is not None:
            self.places, self.num_classes = _places(records.classes, model, self.name)
        names = next((n for n in (model.classes, records.classes) if n and len(n) == self.num_classes), None)
        self.class_names = names_of_classes(self.num_classes, None if names is None else list(names))

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> Picture:
        """Decode one image; raises `UserError` where it does not decode, or its label or a box is none."""
        record = self.records.read(index)
        known = self.num_classes if self.places is None else len(self.places)
        if not 0 <= record.label < known:
            raise UserError(f"{record.where}: label {record.label}; the classes are 0 to {known - 1}")
        label = record.label if self.places is None else self.places[record.label]
        boxes = None if self.column is None else _boxes(record.more.get(self.column), record.where)
        return Picture(decode_image(record.content, record.where), None, label, self.image_id(index), boxes)

    def image_id(self, index: int) -> str:
        """The `image_id` of a record, without reading it."""
        return f"{index:08d}"


class _ShardData(RecordsData):
    """The files that fit a pattern; a relative one starts at `--data-root`."""

    pattern = "PATTERN"

    @classmethod
    def opener(cls, source: Source) -> Callable[[ModelView], EvalData]:
        """The shards, read once, with the labels that they have for a model."""
        records = open_pattern(cls.name, source.pattern, source.root, BOX_COLUMNS)

        @cache
        def opened(model: ModelView) -> _ShardData:
            data = cls(records, records.more, model)
            data.place = str(source.root.resolve() / source.pattern)
            return data

        return lambda model: opened(model._replace(size=0))

    records: ShardRecords

    def image_id(self, index: int) -> str:
        """File and place in it, such as "val-0.parquet/00003"."""
        shard, place = self.records.locate(index)
        return one_line(f"{os.path.relpath(self._files[shard], self._top)}/{place:05d}")

    def fingerprint(self) -> str:
        """Hash of the files' names, sizes and times of modification."""
        return hash_of((file.name, state_of(file)) for file in self._files)

    @property
    def _files(self) -> list[Path]:
        return [Path(shard.path) for shard in self.records.shards]

    @property
    def _top(self) -> str:
        return os.path.commonpath([file.parent for file in self._files])


class ParquetData(_ShardData):
    """Parquet files with a column of encoded images and one of labels."""

    name = "parquet"


class WebdatasetData(_ShardData):
    """Webdataset tars: KEY.jpg with KEY.cls, or with `label` (and `boxes`) in KEY.json."""

    name = "webdataset"


class HubData(RecordsData):
    """A split of a repository of the `datasets` library: of the hub, a local one, or a saved `Dataset`."""

    name = "hf"
    pattern = "REPOSITORY"
    records: TableRecords

    @classmethod
    def opener(cls, source: Source) -> Callable[[ModelView], EvalData]:
        """The split `validation`, or the only one, or that of `REPOSITORY:SPLIT`."""
        from common.data.tables import load_splits, split_records  # importing `datasets` takes a second

        name, _, asked = source.pattern.partition(":")
        place = str(source.root / name) if (source.root / name).is_dir() else name
        found = load_splits(place)
        split = asked or ("validation" if "validation" in found or len(found) > 1 else next(iter(found)))
        if not asked and split not in found:
            raise UserError(f"hf:{name} has the splits {', '.join(found)}; say which: --data hf:{name}:SPLIT")
        records = split_records(found, place, split, BOX_COLUMNS)

        @cache
        def opened(model: ModelView) -> HubData:
            data = cls(records, records.more, model)
            data.place = f"{place} {split}"
            return data

        return lambda model: opened(model._replace(size=0))

    def fingerprint(self) -> str:
        """Hash of the table's files, which `datasets` makes anew of other data, and of the labels."""
        files = [Path(file["filename"]) for file in self.records.table.cache_files]
        labels = self.records.labels
        return hash_of([*((file.name, state_of(file)) for file in files), None if labels is None else labels.tolist()])


def _places(names: Sequence[str], model: ModelView, where: str) -> tuple[list[int], int]:
    """The model's class for each label, and how many classes there are."""
    classes = model.classes
    if classes is not None and len(set(classes)) == len(classes) and set(names) <= set(classes):
        return [classes.index(name) for name in names], len(classes)
    if len(names) == model.num_classes:
        if classes is not None and classes != tuple(names) and len(names) != 1000:
            raise UserError(
                f"{where} has the classes {', '.join(names[:5])}, ..., the checkpoint {', '.join(classes[:5])}, ...; "
                "evaluate it on the data it was trained for"
            )
        return list(range(len(names))), len(names)
    places = imagenet_places(names) if model.num_classes == 1000 else None
    return (list(range(len(names))), len(names)) if places is None else (places.tolist(), 1000)


def _boxes(value: Any, where: str) -> list[list[float]]:
    """One box or several, as a list; none where there is no value."""
    try:
        several = [] if value is None or not len(value) else value if np.ndim(value[0]) else [value]
        return [_box(box) for box in several]
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{where}: {str(value)[:60]} is no [x0, y0, x1, y1] with x0 <= x1 and y0 <= y1, nor a list of such"
        ) from error


def _box(numbers: Sequence[float]) -> list[float]:
    x0, y0, x1, y1 = box = [float(number) for number in numbers]
    if not all(map(math.isfinite, box)) or x0 > x1 or y0 > y1:
        raise ValueError("no box")
    return box


ENTRIES = (HubData, ParquetData, WebdatasetData)
