"""The per-image table on disk: a part for every chunk of images while a run goes on, one file at its end.

Finished parts are kept, so a killed run continues where it was; a part belongs to exactly one question (`key`:
weights, data, explainers, ...) and is never used for another.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.atomic import atomic_file, file_name
from evaluate.runner import Row

COLUMNS = pa.schema(
    [
        ("image_id", pa.string()),
        ("index", pa.int64()),
        ("checkpoint", pa.string()),
        ("explainer", pa.string()),
        ("protocol", pa.string()),
        ("spearman", pa.float64()),
        ("degenerate", pa.bool_()),
        ("dice", pa.float64()),
        ("iou", pa.float64()),
        ("centre_spearman", pa.float64()),
        ("label", pa.int64()),
        ("predicted", pa.int64()),
        ("correct", pa.bool_()),
    ]
)
"""Columns of `per_image.parquet`, before those of further measures. Where there are no human maps, protocol and
what follows from it are empty; where nothing is explained, an image has one row."""


def schema_with(measures: Sequence[str], curves: Sequence[str]) -> pa.Schema:
    """The columns with those of further measures: a number each, and a list `NAME detail` for those with a curve."""
    schema = COLUMNS
    for name in measures:
        schema = schema.append(pa.field(name, pa.float64()))
        if name in curves:
            schema = schema.append(pa.field(f"{name} detail", pa.list_(pa.float64())))
    return schema


class PartStore:
    """The finished chunks of one checkpoint, in a folder of their own.

    Args:
        folder: of the run's parts.
        name: of the checkpoint.
        question: everything the rows depend on, as plain values; parts of another question are removed.
        schema: the columns.
    """

    def __init__(self, folder: Path, name: str, question: dict[str, Any], schema: pa.Schema = COLUMNS) -> None:
        self.schema = schema
        text = json.dumps({"checkpoint": name, **question}, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.prefix = file_name(name)
        self.folder = folder / f"{self.prefix}-{key}"

    def remove_others(self) -> None:
        """Remove this checkpoint's parts that answer another question."""
        for other in self.folder.parent.glob(f"{self.prefix}-*"):
            if other != self.folder and re.fullmatch(r"[0-9a-f]{12}", other.name.removeprefix(f"{self.prefix}-")):
                shutil.rmtree(other)

    def path(self, chunk: int) -> Path:
        """File of a chunk."""
        return self.folder / f"{chunk:05d}.parquet"

    def finished(self, chunks: int) -> list[int]:
        """Chunks that are there."""
        return [chunk for chunk in range(chunks) if self.path(chunk).exists()]

    def write(
        self,
        chunk: int,
        rows: Sequence[Row],
        seconds: float,
        explainers: Mapping[str, float],
        notes: Mapping[str, str],
        left_out: Sequence[str] = (),
    ) -> None:
        """Store the rows of a chunk, whole or not at all.

        With them go the time they took, that of their explainers, notes on explainers, and what is wrong with images
        that were left out.
        """
        table = pa.Table.from_pylist(
            [{name: row.get(name) for name in self.schema.names} for row in rows], schema=self.schema
        )
        about = {
            "explainers": json.dumps(dict(explainers)),
            "notes": json.dumps(dict(notes)),
            "left_out": json.dumps(list(left_out)),
        }
        table = table.replace_schema_metadata({"seconds": repr(seconds), **about})
        with atomic_file(self.path(chunk)) as temporary:
            pq.write_table(table, temporary)

    def tables(self, chunks: int) -> Iterator[pa.Table]:
        """The rows of every chunk, in order."""
        for chunk in range(chunks):
            yield pq.read_table(self.path(chunk))

    def seconds(self, chunks: int) -> float:
        """Time that all chunks took together."""
        return sum(float(self._metadata(chunk)[b"seconds"]) for chunk in range(chunks))

    def explainer_seconds(self, chunks: int) -> dict[str, float]:
        """Time of each explainer's own part and of what they share, over all chunks and processes together."""
        return summed(json.loads(self._metadata(chunk)[b"explainers"]) for chunk in range(chunks))

    def notes(self, chunks: int) -> dict[str, str]:
        """By explainer, what a reader of its rows must know."""
        return {name: note for c in range(chunks) for name, note in json.loads(self._metadata(c)[b"notes"]).items()}

    def left_out(self, chunks: int) -> list[str]:
        """What is wrong with images of all chunks that were left out."""
        return [text for chunk in range(chunks) for text in json.loads(self._metadata(chunk)[b"left_out"])]

    def _metadata(self, chunk: int) -> dict[bytes, bytes]:
        return pq.read_schema(self.path(chunk)).metadata


def summed(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sum of each entry over mappings."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def common_notes(by_checkpoint: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """By explainer, one note for several checkpoints: the same of all, or each one's behind its name."""
    found: dict[str, str] = {}
    for explainer in dict.fromkeys(name for notes in by_checkpoint.values() for name in notes):
        texts = {checkpoint: notes[explainer] for checkpoint, notes in by_checkpoint.items() if explainer in notes}
        one, *more = set(texts.values())
        alike = not more and len(texts) == len(by_checkpoint)
        found[explainer] = one if alike else " | ".join(f"{checkpoint}: {text}" for checkpoint, text in texts.items())
    return found


def merge_parts(path: Path, stores: Sequence[PartStore], chunks: int, notes: Mapping[str, str]) -> None:
    """Write all rows of all checkpoints into one file, a chunk in memory at a time.

    `notes`, by explainer, go into the file's metadata under `explainer_notes`, as JSON.
    """
    schema = stores[0].schema.with_metadata({"explainer_notes": json.dumps(dict(notes))})
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for store in stores:
            for table in store.tables(chunks):
                writer.write_table(table.replace_schema_metadata(schema.metadata))
