"""A table of labels: CSV with the columns `file`, `label` (class index) and, if known, `boxes`."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError

Box = list[float]
_SHOWN = 60
"""Characters of a field that are told."""


class Labelled(NamedTuple):
    """What a table says, by row."""

    files: list[str]
    """Relative to the folder of images."""
    labels: list[int]
    boxes: list[list[Box]] | None
    """(x0, y0, x1, y1) in pixels of each object; None without such a column."""


def read_labels(table: Path, num_classes: int) -> Labelled:
    """Read a table of labels.

    Args:
        table: UTF-8, with a head. `file` lies below the folder of images; `boxes` is a JSON list of
            [x0, y0, x1, y1], from left to right and from top to bottom.
        num_classes: labels lie below it.

    Raises:
        UserError: no such file, or a line that is none of that, with its number.
    """
    files, labels, boxes = [], [], []
    for where, row in _rows(table):
        files.append(_file(row["file"], where))
        labels.append(_label(row, num_classes, where))
        if "boxes" in row:
            boxes.append(_boxes(row["boxes"], where))
    if not files:
        raise UserError(f"{table} needs rows, not only a head; fill it or take class folders")
    return Labelled(files, labels, boxes or None)


def _rows(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row stands, and its fields."""
    reader = csv.DictReader(io.StringIO(_text(table), newline=""), restval="", strict=True)
    try:
        columns = list(reader.fieldnames or [])
        if not {"file", "label"} <= set(columns):
            raise UserError(f"{table} needs rows with the columns file and label; it has {_short(columns)}")
        for row in reader:
            yield f"{table}, line {reader.line_num}", row
    except csv.Error as error:
        raise UserError(f"{table}, line {reader.reader.line_num}: {error}; is a quote missing?") from error


def _text(table: Path) -> str:
    if not table.is_file():
        raise UserError(f"no table of labels at {table}")
    content = table.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{table}, line {line}: {error.reason}, it is not UTF-8; save the table as UTF-8") from error


def _file(name: str, where: str) -> str:
    if not name or "\0" in name:
        raise UserError(f"{where}: file {_short(name)}; give the name of an image")
    if os.path.isabs(name) or Path(os.path.normpath(name)).parts[:1] == ("..",):
        raise UserError(f"{where}: {_short(name)} lies outside the data folder; name files relative to it")
    return name


def _label(row: dict[str, str], num_classes: int, where: str) -> int:
    found = re.fullmatch(r"0*([0-9]{1,9})", row["label"])
    if not found:
        raise UserError(f"{where}: {_short(row['file'])}, {_short(row['label'])}; a label is a class index")
    if int(found[1]) >= num_classes:
        raise UserError(f"{where}: label {found[1]}; the model has classes 0 to {num_classes - 1}")
    return int(found[1])


def _boxes(text: str, where: str) -> list[Box]:
    try:
        return [_box(box) for box in json.loads(text or "[]")]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{where}: boxes {_short(text)} is no JSON list of [x0, y0, x1, y1] with x0 < x1 and y0 < y1"
        ) from error


def _box(numbers: list[float]) -> Box:
    """Raises ValueError or TypeError: it is no box."""
    x0, y0, x1, y1 = box = [float(number) for number in numbers if type(number) in (int, float)]
    if len(box) != len(numbers) or not all(map(math.isfinite, box)) or x0 >= x1 or y0 >= y1:
        raise ValueError("no box")
    return box


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
