"""Data sets of images, map-style: every image has an index, and any of them can be read.

`datasets` keeps its tables memory-mapped, and shards (`common.data.shards`) are read picture by picture, so no data
set is ever held in memory whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import datasets
import numpy as np
import pyarrow as pa
import simplejpeg
from numpy.typing import NDArray

from common.data.decoding import read_file
from common.data.folders import imagenet_names, imagenet_places, scan_class_folders
from common.data.scene_random import Split
from common.data.scenes import CLASS_NAMES, SceneConfig, render_scenes
from common.errors import UserError, first_line

LAYOUT = "ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, or the class folders themselves, ROOT/CLASS/*.jpg"


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


def checked_record(content: Any, label: Any, where: str) -> Record:
    """A record of what a file holds.

    Raises:
        UserError: it holds no picture, or no label that is a whole number.
    """
    if not isinstance(content, bytes):
        raise UserError(f"{where}: no picture; fill it in or take the row out")
    if type(label) is not int:
        raise UserError(f"{where}: label {label!r}; a label is a class index")
    return Record(content, label, where)


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


class TableRecords:
    """Rows of a `datasets` table with an encoded picture and a label."""

    def __init__(
        self, table: datasets.Dataset, picture: str, label: str, classes: list[str] | None, where: str
    ) -> None:
        self.table, self.picture, self.label, self.classes, self.where = table, picture, label, classes, where
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
        return checked_record(content, row[self.label], where)

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """See `Records`."""
        return shuffled(len(self), seed, epoch)


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
    train = _hub_split(name, data.train_split)
    try:
        return train, _hub_split(name, data.val_split)
    except _NoSplit:
        return hold_out(train, data.val_fraction, f"hf:{name}")


class _NoSplit(UserError):
    pass


def _hub_split(name: str, split: str) -> Records:
    where = f"hf:{name} split {split}"
    saved = any((Path(name) / f).is_file() for f in ("dataset_dict.json", "state.json"))
    load: Callable[..., Any] = datasets.load_from_disk if saved else datasets.load_dataset
    try:
        found = load(name)
    except Exception as error:  # datasets raises many kinds: network, permission, script, format
        raise UserError(
            f"hf:{name} cannot be loaded ({type(error).__name__}: {first_line(error)}). For a gated "
            "data set accept its terms on the hub and log in (hf auth login)."
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise _NoSplit(f"{where}: no such split; there are {', '.join(map(str, found))}")
        found = found[split]
    elif split != "train":
        raise _NoSplit(f"{where}: it has no splits")
    picture = next((n for n, f in found.features.items() if isinstance(f, datasets.Image)), None)
    label = next((n for n, f in found.features.items() if isinstance(f, datasets.ClassLabel)), None)
    if picture is None or label is None:
        raise UserError(f"{where}: needs a column of pictures and one of class labels; it has {found.features}")
    names = list(found.features[label].names)
    return TableRecords(found.cast_column(picture, datasets.Image(decode=False)), picture, label, names, where)
