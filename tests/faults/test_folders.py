"""Class folders with loops, pipes and devices: each real folder is entered once, and only files are opened."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest

from common.data.decoding import MAX_BYTES, read_file
from common.data.folders import scan_class_folders
from common.data.tables import TableRecords
from common.errors import UserError
from common.models.transform import ModelTransform
from evaluate.cli.explain_arguments import find_images
from evaluate.data.folder import FolderData
from evaluate.data.loader import load_batches
from tests.faults.hostile_images import encoded
from train.configure import load_settings
from train.data.batch import LoadFailure, SampleKey
from train.data.images import open_data


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """Whatever hangs is ended."""

    def end(*_: object) -> None:
        pytest.fail("it hangs")  # no Exception, which somebody may catch

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of three images, one of each in a subfolder."""
    for name in ("a/0.png", "a/1.png", "a/sub/2.png", "b/0.png", "b/1.png", "b/sub/2.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(encoded("PNG"))
    return tmp_path / "data"


def found(root: Path) -> list[str]:
    return [os.path.relpath(file, root) for file in scan_class_folders(root, "CLASS/*.jpg")[1]]


@pytest.mark.parametrize(
    "links",
    [
        {"a/loop": "."},
        {"a/x": ".", "a/y": "."},
        {"a/up": ".."},
        {"a/up": "../..", "b/sub/top": "../../.."},
        {"a/other": "../b", "b/other": "../a/sub"},
        {"a/sub/all": "../../../..", "b/data": "../../data"},
        {"a/self": "self", "b/nowhere": "gone"},
        {"a/sub/aa": "../sub", "a/aa": "sub", "a/zz": "sub"},
    ],
    ids=str,
)
def test_a_link_brings_no_image_twice_nor_one_of_another_class(links: dict[str, str], root: Path) -> None:
    expected = found(root)
    assert len(expected) == 6
    for link, to in links.items():
        (root / link).symlink_to(to, target_is_directory=True)
    assert found(root) == expected
    assert FolderData(root).files == expected


def test_links_to_folders_elsewhere_are_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "one").symlink_to(root / "a")
    (tmp_path / "links" / "two").mkdir()
    (tmp_path / "links" / "two" / "deep").symlink_to(root / "b")
    assert found(tmp_path / "links") == ["one/0.png", "one/1.png", "one/sub/2.png"] + [
        f"two/deep/{name}" for name in ("0.png", "1.png", "sub/2.png")
    ]


@pytest.mark.parametrize("to", ["a", "."])
def test_two_class_folders_that_are_one_are_refused(to: str, root: Path) -> None:
    (root / "c").symlink_to(to, target_is_directory=True)
    with pytest.raises(UserError, match=r"class folder .*/c is a link to .*; remove one of them"):
        found(root)


def special(path: Path, kind: str) -> None:
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_what_is_no_file_is_told_by_training_evaluation_and_explain(kind: str, root: Path) -> None:
    for place in ("train", "val"):
        (root / place / "c").mkdir(parents=True)
        special(root / place / "c" / "9.jpg", kind)
    message = f"train/c/9.jpg is {kind}, not an image file"
    for source in open_data(load_settings(["recipe=convnext_t", f"data.root={root}"])):
        batch = source.__getitems__([SampleKey(0, 0, 0)])
        assert isinstance(batch, LoadFailure) and message.removeprefix("train/") in batch.message
    with pytest.raises(UserError, match=message):
        list(load_batches(FolderData(root / "train"), ModelTransform(), [0], 1, 0))
    with pytest.raises(UserError, match=message):
        find_images([root / "train" / "c" / "9.jpg"])


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_a_path_in_a_table_of_labels_or_of_datasets_is_no_other_way(kind: str, tmp_path: Path) -> None:
    special(tmp_path / "9.jpg", kind)
    (tmp_path / "t.csv").write_text("file,label\n9.jpg,7\n")
    with pytest.raises(UserError, match=f"9.jpg is {kind}, not an image file"):
        FolderData(tmp_path, tmp_path / "t.csv").picture(0)
    image = {"path": datasets.Value("string"), "bytes": datasets.Value("binary")}  # what Image(decode=False) gives
    images = [{"path": str(tmp_path / "9.jpg"), "bytes": None}, {"path": None, "bytes": None}]
    features = datasets.Features({"image": image, "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 0]}, features=features)
    records = TableRecords(table, "image", "label", None, "hf:x")
    with pytest.raises(UserError, match=f"9.jpg is {kind}, not an image file"):
        records.read(0)
    with pytest.raises(UserError, match="hf:x, row 1: no picture"):
        records.read(1)


def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "big.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(UserError, match=r"big.jpg has 1,073,741,825 bytes, an image file at most 1,073,741,824"):
        read_file(tmp_path / "big.jpg")


@pytest.mark.parametrize(("name", "message"), [("gone.jpg", "no picture at"), ("a\0b.jpg", "null byte"),
                                               ("self.jpg", "symbolic links"), ("n" * 300, "too long")])  # fmt: skip
def test_a_path_that_leads_nowhere_is_one_line(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    with pytest.raises(UserError, match=message):
        read_file(tmp_path / name)


def test_links_leave_labels_as_they_are(root: Path) -> None:
    (root / "b" / "loop").symlink_to("..", target_is_directory=True)
    assert np.array_equal(scan_class_folders(root, "")[2], [0, 0, 0, 1, 1, 1])
