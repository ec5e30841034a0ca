"""Where pictures come from: folders, `datasets` repositories, shards; and what is wrong with them, in one line."""

import io
import json
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from timm.data import ImageNetInfo

from common.data.decoding import decode_image
from common.data.manifest import write_manifest
from common.data.records import Records
from common.data.shards import open_shards
from common.data.tables import open_folders, open_hub
from common.errors import UserError
from tests.train.conftest import make_photographs
from train.configure import load_settings
from train.data.batch import LoadFailure, SampleKey
from train.data.images import Photographs, open_data
from train.data.loader import load, make_loader
from train.data.order import ValidationSampler
from train.settings import DataSettings, Settings


def jpeg(value: int, side: int = 24) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(out, "JPEG", quality=100)
    return out.getvalue()


def contents(records: Records) -> dict[bytes, int]:
    return {r.content: r.label for r in (records.read(i) for i in range(len(records)))}


# --- class folders ----------------------------------------------------------------------------------------------


def test_train_and_val_folders(tmp_path: Path) -> None:
    make_photographs(tmp_path / "train", ("b", "a", "c"), 2)
    make_photographs(tmp_path / "val", ("c", "b"), 3)
    train, val = open_folders(DataSettings(root=str(tmp_path)))
    assert train.classes == val.classes == ["a", "b", "c"]
    assert [train.read(i).label for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [val.read(i).label for i in range(6)] == [1, 1, 1, 2, 2, 2]  # labels of training, although `a` is absent


def test_class_folders_alone_hold_out_a_share_that_is_always_the_same(tmp_path: Path) -> None:
    make_photographs(tmp_path, each=8)
    train, val = open_folders(DataSettings(root=str(tmp_path), val_fraction=0.25))
    again = open_folders(DataSettings(root=str(tmp_path), val_fraction=0.25))[1]
    assert (len(train), len(val)) == (18, 6)
    assert not contents(train).keys() & contents(val).keys()
    assert contents(val) == contents(again)
    assert sorted(train.order(1, 2)) == list(range(18))


def test_imagenet_folders_take_imagenets_labels_even_if_some_are_missing(tmp_path: Path) -> None:
    wordnet = ImageNetInfo("imagenet-1k").label_names()
    make_photographs(tmp_path, (wordnet[999], wordnet[7]), 2)
    train, _ = open_folders(DataSettings(root=str(tmp_path), val_fraction=0.25))
    assert train.classes is not None and len(train.classes) == 1000
    assert {train.read(i).label for i in range(3)} == {7, 999}


def empty_class(root: Path) -> None:
    (root / "owl").mkdir()


def no_pictures(root: Path) -> None:
    (root / "owl").mkdir()
    (root / "owl" / "notes.txt").write_text("x")


@pytest.mark.parametrize("spoil", [empty_class, no_pictures])
def test_a_class_folder_without_pictures_is_named(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(make_photographs(tmp_path / "data"))
    with pytest.raises(UserError, match=r"data/owl holds no pictures"):
        open_folders(DataSettings(root=str(tmp_path / "data")))


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.root=.*nowhere: no such folder.*ROOT/train/CLASS.*smoke=true"):
        open_folders(DataSettings(root=str(tmp_path / "nowhere")))
    for name, files in {"empty": [], "flat": ["0.jpg", "1.jpg"]}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes(jpeg(1))
        with pytest.raises(UserError, match=r"no class folders.*ROOT/val/CLASS.*class folders themselves, ROOT/CLASS"):
            open_folders(DataSettings(root=str(tmp_path / name)))
    with pytest.raises(UserError, match=r"no data given: data.root=.*smoke=true"):
        open_folders(DataSettings())
    make_photographs(tmp_path / "one", ("a",), 1)
    with pytest.raises(UserError, match="val_fraction"):
        open_folders(DataSettings(root=str(tmp_path / "one")))


def test_unknown_source() -> None:
    with pytest.raises(UserError, match="take one of imagefolder, scenes"):
        open_data(load_settings(["recipe=demo", "data.source=imagenet"]))


# --- decoding ---------------------------------------------------------------------------------------------------


def test_jpeg_decodes_as_pil_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (33, 47, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    ours = np.asarray(decode_image(out.getvalue(), "x")).astype(int)
    theirs = np.asarray(Image.open(io.BytesIO(out.getvalue())).convert("RGB")).astype(int)
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "GIF")])
def test_other_kinds_become_rgb(mode: str, kind: str) -> None:
    out = io.BytesIO()
    Image.new(mode, (5, 4)).save(out, kind)
    picture = decode_image(out.getvalue(), "x")
    assert (picture.mode, picture.size) == ("RGB", (5, 4))


@pytest.mark.parametrize("content", [b"", b"no picture", jpeg(9)[:-30], b"\xff\xd8\xff"])
def test_damage_is_named(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^some/file.jpg does not decode"):
        decode_image(content, "some/file.jpg")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_does_not_decode_is_one_line_from_a_worker_too(tmp_path: Path, workers: int) -> None:
    bad = make_photographs(tmp_path / "p") / "dog" / "3.jpg"
    bad.write_bytes(b"broken")
    settings = load_settings(["recipe=convnext_t", f"data.root={tmp_path}/p", f"data.workers={workers}"])
    train, val = open_data(settings)
    parts = [
        p
        for p in (train, val)
        if any(isinstance(p.__getitems__([SampleKey(0, i, 0)]), LoadFailure) for i in range(len(p)))
    ]
    assert len(parts) == 1
    with pytest.raises(UserError) as caught:
        list(load(make_loader(parts[0], ValidationSampler(len(parts[0]), 2, 0, 1), settings, pin=False)))
    assert str(bad) in str(caught.value) and "\n" not in str(caught.value)


# --- datasets ---------------------------------------------------------------------------------------------------


def table(values: range) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    rows = {"image": [{"bytes": jpeg(v), "path": None} for v in values], "label": [v % 2 for v in values]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_saved_dataset(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": table(range(6)), "validation": table(range(6, 9))})
    both.save_to_disk(tmp_path / "set")
    train, val = open_hub(str(tmp_path / "set"), DataSettings())
    assert (len(train), len(val), train.classes) == (6, 3, ["even", "odd"])
    assert contents(train) == {jpeg(v): v % 2 for v in range(6)}


def test_a_local_repository_without_validation_holds_some_out(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    table(range(10)).to_parquet(tmp_path / "repo" / "train.parquet")
    train, val = open_hub(str(tmp_path / "repo"), DataSettings(val_fraction=0.2))
    assert (len(train), len(val)) == (8, 2)
    assert contents(train) | contents(val) == {jpeg(v): v % 2 for v in range(10)}


def test_a_repository_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        open_hub(str(tmp_path / "nothing"), DataSettings())


# --- shards -----------------------------------------------------------------------------------------------------


def write_parquet(folder: Path, sizes: tuple[int, ...]) -> dict[bytes, int]:
    first = 0
    for shard, size in enumerate(sizes):
        values = range(first, first + size)
        pictures = pa.array([{"bytes": jpeg(v), "path": str(v)} for v in values])
        columns = {"image": pictures, "label": pa.array([v % 3 for v in values])}
        pq.write_table(pa.table(columns), folder / f"{shard}.parquet", row_group_size=4)
        first += size
    return {jpeg(v): v % 3 for v in range(first)}


def write_tars(folder: Path, sizes: tuple[int, ...]) -> dict[bytes, int]:
    first = 0
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for v in range(first, first + size):
                label = ("cls", str(v % 3).encode()) if shard % 2 else ("json", json.dumps({"label": v % 3}).encode())
                for extension, content in (("jpg", jpeg(v)), label):
                    info = tarfile.TarInfo(f"n/{v:04}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        first += size
    return {jpeg(v): v % 3 for v in range(first)}


@pytest.mark.parametrize(("kind", "write"), [("parquet", write_parquet), ("webdataset", write_tars)])
def test_uneven_shards_lose_and_double_nothing(
    tmp_path: Path, kind: str, write: Callable[[Path, tuple[int, ...]], dict[bytes, int]]
) -> None:
    sizes = (3, 17, 9)
    expected = write(tmp_path, sizes)
    suffix = "tar" if kind == "webdataset" else kind
    records, _ = open_shards(kind, f"*.{suffix}", DataSettings(root=str(tmp_path), val_root=f"0.{suffix}"))
    assert contents(records) == expected
    orders = [records.order(0, epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(29)) for order in orders)
    assert orders[0] != orders[1] and orders[0] == records.order(0, 0).tolist()
    shard_of = np.repeat([0, 1, 2], sizes)
    for order in orders:  # reading stays within a shard until it is done
        assert (np.diff(shard_of[order]) != 0).sum() == 2


def test_row_groups_are_read_one_after_the_other(tmp_path: Path) -> None:
    write_parquet(tmp_path, (17, 9))
    records, _ = open_shards("parquet", "*.parquet", DataSettings(root=str(tmp_path), val_root="0.parquet"))
    group_of = np.array([i // 4 for i in range(17)] + [100 + i // 4 for i in range(9)])
    groups = group_of[records.order(5, 1)]
    assert (np.diff(groups) != 0).sum() == len(set(group_of)) - 1


def test_a_held_out_part_of_shards_keeps_reading_in_order(tmp_path: Path) -> None:
    write_parquet(tmp_path, (17, 9))
    train, val = open_shards("parquet", "*.parquet", DataSettings(root=str(tmp_path), val_fraction=0.2))
    assert (len(train), len(val)) == (21, 5)
    shards = [Path(train.read(i).where.partition(",")[0]).stem for i in train.order(0, 0)]
    assert sum(a != b for a, b in pairwise(shards)) == 1


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_damaged_shards_are_named(tmp_path: Path, kind: str) -> None:
    data = DataSettings(root=str(tmp_path))
    with pytest.raises(UserError, match="no file fits"):
        open_shards(kind, "*.x", data)
    (tmp_path / "a.x").write_bytes(b"nonsense" * 200)
    with pytest.raises(UserError, match=r"a\.x"):
        open_shards(kind, "*.x", data)


@pytest.mark.parametrize(("kind", "write"), [("parquet", write_parquet), ("webdataset", write_tars)])
def test_shards_are_what_a_manifest_beside_them_lists(
    tmp_path: Path,
    kind: str,
    write: Callable[[Path, tuple[int, ...]], dict[bytes, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DCLS_ALIGN_CACHE", str(tmp_path / "cache"))
    suffix = "tar" if kind == "webdataset" else kind
    expected = write(tmp_path, (6, 5))
    first, second = tmp_path / f"0.{suffix}", tmp_path / f"1.{suffix}"
    write_manifest(tmp_path, [first.name, second.name])
    data = DataSettings(root=str(tmp_path), val_root=second.name)
    assert contents(open_shards(kind, f"*.{suffix}", data)[0]) == expected
    first.rename(tmp_path / "0.away")
    with pytest.raises(UserError, match=rf"0\.{suffix} and 0 more of manifest\.json are missing"):
        open_shards(kind, f"*.{suffix}", data)
    second.replace(first)
    with pytest.raises(UserError, match=rf"0\.{suffix} has .* manifest\.json.*; get it again"):
        open_shards(kind, f"0.{suffix}", data)


def test_a_tar_that_is_cut_off_is_named(tmp_path: Path) -> None:
    write_tars(tmp_path, (6,))
    content = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(content[: 512 * 5 + 7])  # within the third member
    with pytest.raises(UserError, match=r"0\.tar is cut off at byte"):
        open_shards("webdataset", "*.tar", DataSettings(root=str(tmp_path)))


def test_a_tar_without_labels_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        info = tarfile.TarInfo("7.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(UserError, match=r"0\.tar: 7 has no \.cls"):
        open_shards("webdataset", "*.tar", DataSettings(root=str(tmp_path)))


def test_shards_are_read_by_workers(tmp_path: Path) -> None:
    write_tars(tmp_path, (6, 5))
    settings: Settings = load_settings(
        ["recipe=convnext_t", "data.source=webdataset:*.tar", f"data.root={tmp_path}", "data.workers=2"]
    )
    train, _ = open_data(settings)
    assert isinstance(train, Photographs) and train.num_classes == 1000
    batches = list(load(make_loader(train, ValidationSampler(len(train), 4, 0, 1), settings, pin=False)))
    assert sum(len(b.labels) for b in batches) == len(train) == 10
