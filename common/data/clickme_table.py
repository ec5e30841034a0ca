"""ClickMe as the Parquet that `python -m evaluate.clickme convert` writes: the same records as those of the shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import Dataset

from common.data.clickme import ClickMe, Record, absent_shards, make_record, shards_in
from common.data.manifest import check_files
from common.data.shards import ParquetShard, ShardRecords
from common.errors import UserError, first_line

SPLITS = {"val": "validation", "train": "train"}
"""Names of the published splits, and what `datasets` calls them."""
LEFT_OUT = b"clickme_left_out"
"""In a file's metadata: the number of damaged records of its shard that were left out."""
_MORE = ("heatmap", "image_id")


class ClickMeTable(Dataset[Record]):
    """ClickMe from Parquet, with the interface of `ClickMe`.

    Args:
        root: as for `tables_in`.

    Raises:
        UserError: no such files, or one that is damaged, lacks a column or is not what `manifest.json` lists. Reading
            a record raises it too, where a picture does not decode.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.shards: list[Path] = tables_in(Path(root).expanduser())
        if not self.shards:
            raise UserError(f"{root} holds no ClickMe in Parquet; write it: python -m evaluate.clickme convert")
        check_files(self.shards, str(self.shards[0].parent / f"{self.shards[0].name.partition('-')[0]}-*.parquet"))
        self._rows = ShardRecords([ParquetShard(str(path), _MORE) for path in self.shards])
        if tuple(self._rows.more) != _MORE:
            raise UserError(
                f"{self.shards[0].parent}: not every Parquet file has the columns image, label, {', '.join(_MORE)}; "
                "write them: python -m evaluate.clickme convert"
            )
        self._ids = [name for path in self.shards for name in _ids(path)]
        self.left_out = sum(_left_out(path) for path in self.shards)

    @property
    def missing_shards(self) -> list[str]:
        """Names of the published shards that none of the records comes from."""
        return absent_shards({f"{name.partition('/')[0]}.tfrecords" for name in self._ids})

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} records")
        row = self._rows.read(index % len(self))
        try:
            return make_record(row.content, row.more["heatmap"]["bytes"], row.label, self.image_id(index))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{row.where} is no ClickMe record: {error}. Write it again: python -m evaluate.clickme convert"
            ) from error

    def image_id(self, index: int) -> str:
        """The `image_id` of a record, without reading it."""
        return self._ids[index]


def tables_in(root: Path) -> list[Path]:
    """The Parquet files of ClickMe: one file, or those in a folder or in its subfolder `data/`; validation first."""
    if root.is_file():
        return [root] if root.suffix == ".parquet" else []
    for split in SPLITS.values():
        for folder in (root, root / "data"):
            if found := sorted(folder.glob(f"{split}-*.parquet")):
                return found
    return []


def open_clickme(root: Path) -> ClickMe | ClickMeTable:
    """ClickMe from its shards, or where there are none from Parquet.

    Raises:
        UserError: neither is there, or it cannot be read.
    """
    table = tables_in(root)
    return ClickMeTable(root) if table and (root.is_file() or not shards_in(root)) else ClickMe(root)


def _ids(path: Path) -> Iterator[str]:
    try:
        names = pq.read_table(path, columns=["image_id"], page_checksum_verification=True).column("image_id")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable parquet file: {first_line(error)}") from error
    for row, name in enumerate(names.to_pylist()):
        if not isinstance(name, str):
            raise UserError(f"{path}, row {row}: image_id {name!r}; write it: python -m evaluate.clickme convert")
        yield name


def _left_out(path: Path) -> int:
    written = (pq.read_metadata(path).metadata or {}).get(LEFT_OUT, b"0")
    return int(written) if written.isdigit() else 0
