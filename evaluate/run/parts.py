"""The per-image table on disk: one part per so many images during a run, one file at its end.

Finished parts are kept, so a killed run continues where it was; a part belongs to exactly one question (`key`:
weights, data, explainers, ...) and is never used for another. It bears a hash of itself, as the checksums of Parquet
leave out the footer; one that does not fit is measured again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.atomic import atomic_file, file_name
from common.errors import UserError, first_line
from evaluate.rows import Row, table_schema
from evaluate.run.measure import summed

_SEAL = b"sealed:"
"""Stands in a part's metadata before the SHA-256 of everything around that."""


_DIGITS = 64


class DamagedPart(UserError):
    """A part that is not what was written."""


class PartStore:
    """The finished parts of one checkpoint, in a folder of their own.

    Args:
        folder: of the run's parts.
        name: of the checkpoint.
        question: everything the rows depend on, as plain values.
        parts: places in the data set, by part.
        schema: the columns; None: those without further metrics.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        question: dict[str, Any],
        parts: Sequence[Sequence[int]],
        schema: pa.Schema | None = None,
    ) -> None:
        self.parts, self.schema = parts, schema or table_schema()
        text = json.dumps({"checkpoint": name, **question}, sort_keys=True, default=str)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.folder = folder / f"{file_name(name)}-{self.key}"

    def path(self, part: int) -> Path:
        """File of a part."""
        return self.folder / f"{part:05d}.parquet"

    def finished(self, readable: Callable[[int], bool]) -> list[int]:
        """Numbers of the parts that need not be measured again; a damaged one is named on standard error.

        Args:
            readable: whether the image at a place in the data set can be read; it is asked of those that were left
                out, and where one can, its part is to be measured again.
        """
        found = []
        for part in range(len(self.parts)):
            if not self.path(part).exists():
                continue
            try:
                table = self._read(part)
            except DamagedPart as error:
                print(f"warning: {error}", file=sys.stderr)
                continue
            absent = set(self.parts[part]) - set(table.column("index").to_pylist())
            if not any(map(readable, sorted(absent))):
                found.append(part)
        return found

    def write(
        self,
        part: int,
        rows: Sequence[Row],
        seconds: float,
        explainers: Mapping[str, float],
        notes: Mapping[str, str],
        left_out: Sequence[str] = (),
    ) -> None:
        """Store the rows of a part, whole or not at all.

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
            "part": self._label(part),
            "seal": _SEAL + bytes(_DIGITS),
        }
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({"seconds": repr(seconds), **about}), sink)
        with atomic_file(self.path(part)) as temporary:
            temporary.write_bytes(_sealed(sink.getvalue().to_pybytes()))

    def tables(self) -> Iterator[pa.Table]:
        """The rows of every part, in order.

        Raises:
            DamagedPart: it was finished, and is so no longer.
        """
        for part in range(len(self.parts)):
            yield self._read(part)

    def seconds(self) -> float:
        """Time that all parts took together."""
        return sum(float(self._metadata(part)[b"seconds"]) for part in range(len(self.parts)))

    def explainer_seconds(self) -> dict[str, float]:
        """Time of each explainer's own part and of what they share, over all parts and processes together."""
        return summed(json.loads(self._metadata(part)[b"explainers"]) for part in range(len(self.parts)))

    def notes(self) -> dict[str, str]:
        """By explainer, what a reader of its rows must know."""
        parts = (json.loads(self._metadata(part)[b"notes"]) for part in range(len(self.parts)))
        return {name: note for notes in parts for name, note in notes.items()}

    def left_out(self) -> list[str]:
        """What is wrong with images of all parts that were left out."""
        return [text for part in range(len(self.parts)) for text in self._left_out(part)]

    def _left_out(self, part: int) -> list[str]:
        return json.loads(self._metadata(part)[b"left_out"])

    def _metadata(self, part: int) -> dict[bytes, bytes]:
        return self._read(part).schema.metadata

    def _label(self, part: int) -> str:
        return f"{self.key}/{part}"

    def _read(self, part: int) -> pa.Table:
        """Raises `DamagedPart`: it cannot be read, is not as it was written, or answers another question."""
        path = self.path(part)
        again = "its images have to be measured again"
        try:
            content = path.read_bytes()
            if content != _sealed(content):
                raise DamagedPart(f"{path} does not fit its hash; {again}")
            table = pq.read_table(pa.BufferReader(content))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DamagedPart(f"{path} cannot be read ({first_line(error)}); {again}") from error
        label = (table.schema.metadata or {}).get(b"part", b"").decode()
        if label != self._label(part):
            raise DamagedPart(f"{path} is part {label} of an evaluation, not {self._label(part)}; {again}")
        return table


def _sealed(content: bytes) -> bytes:
    """A part with the hash it should bear; without a place for one, nothing."""
    before, mark, after = content.rpartition(_SEAL)  # metadata come last
    digest = hashlib.sha256(before + after[_DIGITS:]).hexdigest()
    return before + mark + digest.encode() + after[_DIGITS:] if mark else b""


def remove_stale(stores: Sequence[PartStore]) -> None:
    """Remove the parts that lie beside those of some checkpoints: they answer another question."""
    kept = {store.folder for store in stores}
    for other in stores[0].folder.parent.glob("*-*"):
        if other not in kept and re.search(r"-[0-9a-f]{12}$", other.name):
            shutil.rmtree(other)


def merge_parts(path: Path, stores: Sequence[PartStore], notes: Mapping[str, str]) -> None:
    """Write all rows of all checkpoints into one file, a part in memory at a time.

    `notes`, by explainer, go into the file's metadata under `explainer_notes`, as JSON.
    """
    schema = stores[0].schema.with_metadata({"explainer_notes": json.dumps(dict(notes))})
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema, write_page_checksum=True) as writer:
        for store in stores:
            for table in store.tables():
                writer.write_table(table.replace_schema_metadata(schema.metadata))
