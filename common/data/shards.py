"""Shards: Parquet files and webdataset tars, read image by image, in an order that stays within a shard.

An epoch takes shards in a random order, blocks of pictures in a random order within their shard, and pictures in
a random order within their block, so that reading stays nearly sequential. Since every picture has an index,
ranks and workers take batches of one common order: uneven shards make nobody wait, no picture is lost or
doubled, and a run resumes at the very sample. Pictures of a global batch come from few shards, so shards should
be made of shuffled pictures, as those of ImageNet on the hub are.
"""

from __future__ import annotations

import glob
import json
import os
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.data.folders import SUFFIXES
from common.data.manifest import check_files
from common.data.records import Places, Record, Records, checked_record, hold_out
from common.errors import UserError, first_line

_TAR_BLOCK = 256  # pictures
_UNREADABLE = (OSError, ValueError, IndexError, KeyError, pa.ArrowException)
"""What pyarrow raises of a damaged file."""


class Shard(Protocol):
    """One file of pictures."""

    path: str
    blocks: list[int]
    """Pictures in each block that is read together."""
    classes: list[str] | None
    """Class names, if the file tells."""
    more: list[str]
    """Which of the further columns that were asked for it has."""

    def read(self, index: int) -> Record:
        """The picture of an index within the shard."""


class ParquetShard:
    """A parquet file with a column of encoded pictures (bytes, or a struct with `bytes`) and one of labels.

    Args:
        path: of the file.
        more: further columns to read where it has them.

    Raises:
        UserError: it is no Parquet file, or lacks one of the two columns.
    """

    def __init__(self, path: str, more: Sequence[str] = ()) -> None:
        self.path = path
        try:
            with pq.ParquetFile(path) as file:
                schema, metadata = file.schema_arrow, file.metadata
                self.blocks = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
                self.picture = _column(schema, path, "pictures", _holds_bytes)
                self.label = _column(schema, path, "labels", pa.types.is_integer)
                self.classes = _class_names(schema, self.label)
                self.more = [name for name in more if name in schema.names]
        except _UNREADABLE as error:
            raise UserError(f"{path} is not a readable parquet file: {first_line(error)}") from error
        if min(self.blocks, default=0) < 0:
            raise UserError(f"{path} is not a readable parquet file: its row groups have {self.blocks} rows")
        self.starts = [0, *accumulate(self.blocks)]

    def read(self, index: int) -> Record:
        """See `Shard`."""
        block = bisect_right(self.starts, index) - 1
        row, where = index - self.starts[block], f"{self.path}, row {index}"
        try:
            columns = _read_row_group(self.path, block, (self.picture, self.label, *self.more))
            picture, label, *more = (column[row].as_py() for column in columns)
        except _UNREADABLE as error:
            seen = f"row group {block} is damaged ({first_line(error)})"
            raise UserError(f"{where}: {seen}; get the shard again") from error
        content = picture["bytes"] if isinstance(picture, dict) else picture
        return checked_record(content, label, where, dict(zip(self.more, more)))


@lru_cache(maxsize=4)  # a batch lies in few row groups
def _read_row_group(path: str, block: int, names: tuple[str, ...]) -> list[pa.ChunkedArray]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read_row_group(block, columns=list(names))
    return [table.column(name) for name in names]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _column(schema: pa.Schema, path: str, what: str, fits: Callable[[pa.DataType], bool]) -> str:
    preferred = ("image", "jpg", "label", "cls")
    names = [f.name for f in schema if fits(f.type)]
    if not names:
        raise UserError(f"{path} has no column of {what}; its columns are {', '.join(schema.names)}")
    return next((name for name in preferred if name in names), names[0])


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """Class names that `datasets` writes into the file's metadata."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (TypeError, KeyError, ValueError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


class TarShard:
    """A webdataset tar: for each key a picture (KEY.jpg, .png, ...) and a label (KEY.cls, or `label` in KEY.json).

    Args:
        path: of the file.
        more: further keys of KEY.json to read where the first sample has them.

    Raises:
        UserError: it is no whole tar file, or a picture has no label.
    """

    classes: list[str] | None = None

    def __init__(self, path: str, more: Sequence[str] = ()) -> None:
        self.path = path
        try:
            pictures, labels, notes = _read_members(path)
        except (OSError, ValueError, tarfile.TarError) as error:
            raise UserError(f"{path} is not a whole, uncompressed tar file: {first_line(error)}") from error
        unlabelled = [key for key in pictures if key not in labels]
        if unlabelled or not pictures:
            first = f"{unlabelled[0].lstrip('/')} has no .cls or .json" if unlabelled else "it holds no pictures"
            raise UserError(f"{path}: {first}; a webdataset has KEY.jpg and KEY.cls for every sample")
        spans = [(*pictures[key], *labels[key], *notes.get(key, (0, 0))) for key in pictures]
        self.samples = np.array(spans, dtype=np.int64)
        count = len(self.samples)
        self.blocks = [min(_TAR_BLOCK, count - i) for i in range(0, count, _TAR_BLOCK)]
        self.more = list(more)
        self.more = list(self.read(0).more) if more else []

    def read(self, index: int) -> Record:
        """See `Shard`."""
        offset, size, label_offset, label_size, in_json, note_offset, note_size = (int(n) for n in self.samples[index])
        where = f"{self.path}, sample {index}"
        try:
            with open(self.path, "rb") as file:
                content = os.pread(file.fileno(), size, offset)
                text = os.pread(file.fileno(), label_size, label_offset)
                note = os.pread(file.fileno(), note_size, note_offset) if self.more else b""
            label = json.loads(text)["label"] if in_json else int(text)
            notes = json.loads(note) if note else {}
            more = {name: notes[name] for name in self.more if name in notes}
        except OSError as error:
            raise UserError(f"{where} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{where}: {text[:40]!r} is no label") from error
        if len(content) < size:
            raise UserError(f"{where}: the shard ends within the picture; get the shard again")
        return checked_record(content, label, where, more)


_Span = tuple[int, int]
"""Offset and size."""


def _read_members(path: str) -> tuple[dict[str, _Span], dict[str, tuple[int, int, bool]], dict[str, _Span]]:
    """Where the picture, the label and the JSON of each key lie, and whether the label is in the JSON.

    Raises:
        OSError, ValueError, tarfile.TarError: it is no whole tar file.
        UserError: it ends early, or a key has two pictures or two labels.
    """
    found: dict[str, dict[str, _Span]] = {"picture": {}, "cls": {}, "json": {}}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            folder, _, file = member.name.rpartition("/")
            stem, _, extension = file.partition(".")
            key, kind = f"{folder}/{stem}", "picture" if f".{extension.lower()}" in SUFFIXES else extension
            if key in found.get(kind, ()):
                raise UserError(f"{path}: {member.name!r} is the second {kind} of its key; a key has one of each kind")
            if kind in found:
                found[kind][key] = member.offset_data, member.size
        end = tar.offset
    with open(path, "rb") as shard:
        if os.pread(shard.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):  # tarfile says nothing
            raise UserError(f"{path} is cut off at byte {end}, it has no end mark; get the shard again")
    labels = {key: (*span, True) for key, span in found["json"].items()}
    labels |= {key: (*span, False) for key, span in found["cls"].items()}
    return found["picture"], labels, found["json"]


class ShardRecords:
    """The pictures of all shards."""

    labels: NDArray[np.int64] | None = None  # they are read with the pictures

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self.starts = [0, *accumulate(sum(shard.blocks) for shard in shards)]
        self.classes = shards[0].classes
        self.more = [name for name in shards[0].more if all(name in shard.more for shard in shards)]

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, index: int) -> Record:
        """See `Records`."""
        shard, place = self.locate(index)
        return self.shards[shard].read(place)

    def locate(self, index: int) -> tuple[int, int]:
        """The shard of a picture, and its place in it."""
        shard = bisect_right(self.starts, index) - 1
        return shard, index - self.starts[shard]

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """See `Records`; see the head of this file for how it stays within shards."""
        generator = np.random.Generator(np.random.PCG64([seed, epoch]))
        pieces = []
        for shard in generator.permutation(len(self.shards)):
            blocks = self.shards[shard].blocks
            starts = [self.starts[shard], *(self.starts[shard] + n for n in accumulate(blocks))]
            for block in generator.permutation(len(blocks)):
                pieces.append(starts[block] + generator.permutation(blocks[block]))
        return np.concatenate(pieces)


def open_shards(kind: str, pattern: str, data: Places) -> tuple[Records, Records]:
    """Training and validation pictures of `parquet:PATTERN` or `webdataset:PATTERN` (local files, `*` and `?`).

    `data.val_root` is the pattern of the validation shards; without it a share of the pictures is held out.

    Raises:
        UserError: no file fits, a shard is damaged or lacks pictures or labels, or is not what `manifest.json` lists.
    """
    train = open_pattern(kind, pattern, data.root)
    if data.val_root:
        return train, open_pattern(kind, data.val_root, data.root)
    return hold_out(train, data.val_fraction, f"{kind}:{pattern}")


def open_pattern(kind: str, pattern: str, root: str | Path | None, more: Sequence[str] = ()) -> ShardRecords:
    """All pictures of the shards that fit a pattern.

    Args:
        kind: `parquet` or `webdataset`.
        pattern: of local files, with `*`, `?` and `**`.
        root: the folder where a relative pattern starts; by default the current one.
        more: further columns, or keys of KEY.json, to read where every shard has them.

    Raises:
        UserError: see `open_shards`.
    """
    place = str(Path(root or ".") / pattern)
    paths = sorted(glob.glob(place, recursive=True))
    if not paths:
        raise UserError(
            f"{kind}: no file fits {place!r}; quote the pattern in the shell, and give the folder it starts from"
        )
    check_files([Path(path) for path in paths], place)
    if kind == "parquet":
        return ShardRecords([ParquetShard(path, more) for path in paths])
    return ShardRecords([TarShard(path, more) for path in paths])
