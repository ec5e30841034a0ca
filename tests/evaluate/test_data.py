"""Folders and tables of photographs: labels, boxes, and what is said when they are wrong."""

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.models.transform import ModelTransform
from evaluate.cli.main import main
from evaluate.data.folder import FolderData
from evaluate.data.loader import choose_indices, load_batches


def photograph(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(path)


def test_class_folders_count_in_sorted_order_and_wordnet_ids_mean_imagenet(tmp_path):
    for name in ("b/1.png", "a/2.png", "a/1.png"):
        photograph(tmp_path / "plain" / name)
    data = FolderData(tmp_path / "plain")
    assert (data.files, data.labels, data.num_classes) == (["a/1.png", "a/2.png", "b/1.png"], [0, 0, 1], 2)
    photograph(tmp_path / "net" / "n01443537" / "1.jpg")
    data = FolderData(tmp_path / "net")
    assert data.labels == [1] and data.num_classes == 1000 and data.class_names[1] == "goldfish"


def test_folders_named_as_the_models_classes_are_those(tmp_path):
    for name in ("dog/1.png", "ant/1.png", ".cache/no.txt"):
        photograph(tmp_path / name.replace(".txt", ".png"))
    data = FolderData(tmp_path, classes=["ant", "cat", "dog"])
    assert (data.files, data.labels, data.num_classes) == (["ant/1.png", "dog/1.png"], [0, 2], 3)
    assert data.class_names == ["ant", "cat", "dog"]
    with pytest.raises(UserError, match=r"has the classes ant, dog, \.\.\., the checkpoint cats, dogs"):
        FolderData(tmp_path, classes=["cats", "dogs"])
    (tmp_path / "dog").rename(tmp_path / "n01443537")
    (tmp_path / "ant").rename(tmp_path / "n01440764")
    assert FolderData(tmp_path, classes=["ant", "cat", "dog"]).labels == [0, 1]  # WordNet ids, beside a hidden folder


def test_the_fingerprint_tells_pictures_and_boxes_apart(tmp_path):
    (tmp_path / "t.csv").write_text('file,label,boxes\nx.png,7,"[[1, 1, 4, 4]]"\n')
    photograph(tmp_path / "a" / "x.png")
    first = FolderData(tmp_path / "a", tmp_path / "t.csv").fingerprint()
    assert first == FolderData(tmp_path / "a", tmp_path / "t.csv").fingerprint()
    photograph(tmp_path / "b" / "x.png", (80, 60))
    assert FolderData(tmp_path / "b", tmp_path / "t.csv").fingerprint() != first
    (tmp_path / "t.csv").write_text('file,label,boxes\nx.png,7,"[[1, 1, 4, 5]]"\n')
    assert FolderData(tmp_path / "a", tmp_path / "t.csv").fingerprint() != first


def test_rows_of_other_pictures_under_the_same_names_are_not_kept(tmp_path, capsys):
    for root in ("a", "b"):
        photograph(tmp_path / root / "n01443537" / "1.png")  # of the same size, too
    arguments = ["--ckpt", "untrained", "--model", "timm:resnet18", "--data", "imagefolder", "--workers", "0"]
    for root, more, kept in (("a", [], False), ("a", [], True), ("b", ["--overwrite"], False)):
        main([*arguments, "--data-root", str(tmp_path / root), "--out", str(tmp_path / "out"), *more])
        assert ("parts kept" in capsys.readouterr().out) == kept


def test_a_table_gives_labels_and_boxes_in_the_models_view(tmp_path):
    photograph(tmp_path / "x.png", (60, 40))
    (tmp_path / "t.csv").write_text('file,label,boxes\nx.png,7,"[[20, 10, 40, 30]]"\n')
    data = FolderData(tmp_path, tmp_path / "t.csv")
    (batch,) = load_batches(data, ModelTransform(20, 20), [0], 4, 0)
    assert batch.labels.tolist() == [7] and batch.image_ids == ["x.png"] and batch.human is None
    # 60x40 shrinks to 30x20 and loses 5 columns on either side.
    assert batch.boxes[0].tolist() == [[5.0, 5.0, 15.0, 15.0]]


def test_a_subset_is_seeded_sorted_and_without_doubles():
    first = choose_indices(100, 10, 3)
    assert (first == choose_indices(100, 10, 3)).all() and len(set(first.tolist())) == 10
    assert (np.sort(first) == first).all() and (first != choose_indices(100, 10, 4)).any()
    assert choose_indices(5, 10, 0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda root: None, "no data folder at"),
        (lambda root: root.mkdir(), "holds no class folders"),
        (lambda root: (root / "empty").mkdir(parents=True), r"class folder .*empty holds no"),
    ],
)
def test_a_folder_that_is_no_data_set(make, message, tmp_path):
    make(tmp_path / "root")
    with pytest.raises(UserError, match=message):
        FolderData(tmp_path / "root")


@pytest.mark.parametrize(
    "text,message",
    [
        ("name,class\na.png,3\n", "needs rows with the columns file and label"),
        ("file,label\na.png,cat\n", r"line 2: 'a.png', 'cat'; a label is a class index"),
        ("file,label,boxes\na.png,3,nonsense\n", "line 2: boxes 'nonsense' is no JSON list"),
        ("", "needs rows"),
        ("file,label\na.png,3\nb.png,1000\n", "line 3: label 1000; the model has classes 0 to 999"),
    ],
)
def test_a_damaged_table_is_named_with_its_line(text, message, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        FolderData(tmp_path, tmp_path / "t.csv")


def test_a_picture_that_does_not_decode_is_named_and_leaves_nothing_behind(tmp_path):
    photograph(tmp_path / "root" / "n01443537" / "good.jpg")
    (tmp_path / "root" / "n01443537" / "bad.jpg").write_bytes(b"not a picture")
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"bad\.jpg does not decode as a picture"):
        main(["--ckpt", "untrained", "--model", "timm:resnet18", "--data", "imagefolder", "--data-root",
              str(tmp_path / "root"), "--out", str(out), "--workers", "1"])  # fmt: skip
    assert not list(out.rglob("*.*"))
