"""Tables of the `datasets` library: class folders as one, repositories of the hub, and saved data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.data.decoding import read_file
from common.data.folders import imagenet_names, imagenet_places, scan_class_folders
from common.data.records import Places, Record, Records, checked_record, hold_out, shuffled
from common.errors import UserError, first_line

LAYOUT = "ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, or the class folders themselves, ROOT/CLASS/*.jpg"


class TableRecords:
    """Rows of a `datasets` table with an encoded picture, a label, and the columns `more` where it has them."""

    def __init__(
        self,
        table: datasets.Dataset,
        picture: str,
        label: str,
        classes: list[str] | None,
        where: str,
        more: Sequence[str] = (),
    ) -> None:
        self.table, self.picture, self.label, self.classes, self.where = table, picture, label, classes, where
        self.more = [name for name in more if name in table.column_names]
        column = table.select_columns([label]).with_format("arrow")[:].column(label)
        self.labels: NDArray[np.int64] | None = column.fill_null(-1).to_numpy()

    def __len__(self) -> int:
        return len(self.table)

    def read(self, index: int) -> Record:
        """See `Records`."""
        where = f"{self.where}, row {index}"
        try:
            row = self.table[int(index)]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{where} is damaged ({first_line(error)}); get the data set again") from error
        picture = row[self.picture] or {}
        path, content = picture.get("path"), picture.get("bytes")
        if path and content is None:
            content, where = read_file(path), path
        elif path:
            where += f" ({path})"
        return checked_record(content, row[self.label], where, {name: row[name] for name in self.more})

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """See `Records`."""
        return shuffled(len(self), seed, epoch)


# --- a folder of class folders --------------------------------------------------------------------------------


def open_folders(data: Places) -> tuple[Records, Records]:
    """Training and validation pictures of `imagefolder`.

    Raises:
        UserError: the folder is missing, empty or laid out in another way, or a class folder has no picture.
    """
    if data.root is None:
        raise UserError(
            f"no data given: data.root=ROOT, a folder laid out as {LAYOUT}. To see the recipe run without data: "
            "smoke=true"
        )
    root = Path(data.root)
    if not root.is_dir():
        raise UserError(
            f"data.root={root}: no such folder. It should be laid out as {LAYOUT}. To see the recipe run without "
            "data: smoke=true"
        )
    train_root = root / "train" if (root / "train").is_dir() else root
    val_root = Path(data.val_root) if data.val_root else None
    if val_root is None and train_root != root:
        val_root = next((p for p in (root / "val", root / "validation") if p.is_dir()), None)
    names, files, labels = scan_class_folders(train_root, LAYOUT)
    records = _folder_table(files, labels, names, train_root)
    if val_root is None:
        return hold_out(records, data.val_fraction, str(train_root))
    val_names, val_files, val_labels = scan_class_folders(val_root, LAYOUT)
    extra = sorted(set(val_names) - set(names))
    if extra:
        raise UserError(f"{val_root} has classes that {train_root} has not: {', '.join(extra[:5])}")
    place = np.array([names.index(name) for name in val_names])
    return records, _folder_table(val_files, place[val_labels], names, val_root)


def _folder_table(files: list[str], labels: NDArray[np.int64], names: list[str], root: Path) -> Records:
    """Where every class folder is the WordNet id of an ImageNet-1k class, labels are ImageNet's, even of a part."""
    places = imagenet_places(names)
    if places is not None:
        labels, names = places[labels], imagenet_names()
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int32")})
    table = datasets.Dataset.from_dict(
        {"image": [{"path": f, "bytes": None} for f in files], "label": labels}, features=features
    )
    return TableRecords(table, "image", "label", names, str(root))


# --- a repository of `datasets` -------------------------------------------------------------------------------


def open_hub(name: str, data: Places) -> tuple[Records, Records]:
    """Training and validation pictures of `hf:NAME`: a repository of the hub, a local one, or a saved `Dataset`.

    Raises:
        UserError: it cannot be loaded, has no such split, or no column of pictures and of class labels.
    """
    found = load_splits(name)
    train = split_records(found, name, data.train_split)
    if data.val_split in found:
        return train, split_records(found, name, data.val_split)
    return hold_out(train, data.val_fraction, f"hf:{name}")


def load_splits(name: str) -> dict[str, datasets.Dataset]:
    """The splits of `hf:NAME` by their names; a saved `Dataset` without splits is one of training.

    Raises:
        UserError: it cannot be loaded.
    """
    saved = any((Path(name) / f).is_file() for f in ("dataset_dict.json", "state.json"))
    load: Callable[..., Any] = datasets.load_from_disk if saved else datasets.load_dataset
    try:
        found = load(name)
    except Exception as error:  # datasets raises many kinds: network, permission, script, format
        raise UserError(
            f"hf:{name} cannot be loaded ({type(error).__name__}: {first_line(error)}). For a gated "
            "data set accept its terms on the hub and log in (hf auth login)."
        ) from error
    return {str(split): part for split, part in found.items()} if isinstance(found, dict) else {"train": found}


def split_records(found: dict[str, datasets.Dataset], name: str, split: str, more: Sequence[str] = ()) -> TableRecords:
    """The rows of a split, with the columns `more` where it has them.

    Raises:
        UserError: no such split, or no column of pictures and of class labels.
    """
    where = f"hf:{name} split {split}"
    if split not in found:
        raise UserError(f"{where}: no such split; there are {', '.join(found)}")
    table = found[split]
    picture = next((n for n, f in table.features.items() if isinstance(f, datasets.Image)), None)
    label = next((n for n, f in table.features.items() if isinstance(f, datasets.ClassLabel)), None)
    if picture is None or label is None:
        raise UserError(f"{where}: needs a column of pictures and one of class labels; it has {table.features}")
    names = list(table.features[label].names)
    table = table.cast_column(picture, datasets.Image(decode=False))
    return TableRecords(table, picture, label, names, where, more)
