"""Data sets by their names: what `train` reads, ClickMe in Parquet, and what each of them says when it is wrong."""

import io
import json
import pickle
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from common.data.clickme import ClickMe
from common.data.clickme_table import ClickMeTable
from common.data.folders import imagenet_names
from common.data.tfrecord import encode_example, write_records
from common.errors import UserError
from common.models.transform import ModelTransform
from evaluate.cli.main import main
from evaluate.clickme.parquet import convert
from evaluate.data.clickme import ClickMeData
from evaluate.data.interface import ModelView
from evaluate.data.loader import load_batches
from evaluate.data.registry import DATA_SETS, open_data
from evaluate.data.scenes import ScenesData
from tests.evaluate.conftest import jpeg, save_untrained

SIZES = ((40, 30), (30, 40), (24, 24), (50, 20), (33, 31))
BOXES = [[1, 2, 20, 18], [0, 0, 30, 40], [5, 5, 5, 9], [10, 1, 12, 3], [2, 2, 4, 4]]
CLASSES = ["ant", "bee", "cat"]
MODEL = ModelView(32, 3)


def png(number):
    """An image whose every pixel tells which one it is."""
    buffer = io.BytesIO()
    Image.new("RGB", SIZES[number], (number, 10 + number, 20)).save(buffer, "PNG")
    return buffer.getvalue()


def write_table(path, numbers, names=CLASSES, **more):
    """A Parquet file as `datasets` writes it, in row groups of 2."""
    label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    columns = {"image": datasets.Image(), "label": label}
    rows = {"image": [{"bytes": png(n), "path": None} for n in numbers], "label": [n % 3 for n in numbers]}
    kinds = {
        "box": datasets.List(datasets.Value("int64")),
        "boxes": datasets.List(datasets.List(datasets.Value("float32"))),
    }
    columns |= {name: kinds[name] for name in more}
    rows |= {name: [values[n] for n in numbers] for name, values in more.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=datasets.Features(columns)).to_parquet(path, batch_size=2)


def write_tar(path, numbers, boxes=True):
    """Labels stand in KEY.cls for even ones and in KEY.json for odd ones, boxes always in KEY.json."""
    with tarfile.open(path, "w") as tar:
        for n in numbers:
            notes = ({"boxes": [BOXES[n]]} if boxes else {}) | ({"label": n % 3} if n % 2 else {})
            files = {"png": png(n), "json": json.dumps(notes).encode()} | (
                {} if n % 2 else {"cls": str(n % 3).encode()}
            )
            for extension, content in files.items():
                info = tarfile.TarInfo(f"{n:03}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_parquet(root):
    write_table(root / "a.parquet", [0, 1, 2], box=BOXES)
    write_table(root / "b.parquet", [3, 4], box=BOXES)
    return "parquet:*.parquet"


def write_tars(root):
    write_tar(root / "a.tar", [0, 1, 2])
    write_tar(root / "b.tar", [3, 4])
    return "webdataset:*.tar"


def write_repository(root):
    write_table(root / "repo" / "validation.parquet", range(5), box=BOXES)
    write_table(root / "repo" / "train.parquet", [0], box=BOXES)
    return "hf:repo"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("DCLS_ALIGN_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("write", [write_parquet, write_tars, write_repository])
def test_every_image_comes_with_its_label_its_boxes_and_an_id_of_its_own(write, tmp_path):
    data = pickle.loads(pickle.dumps(open_data(write(tmp_path), tmp_path)(MODEL)))  # as a loader's worker gets it
    assert (len(data), data.num_classes, data.has_boxes, data.has_human_maps) == (5, 3, True, False)
    ids = set()
    for n in (4, 0, 3, 1, 2):
        picture = data.picture(n)
        assert picture.image.size == SIZES[n] and picture.image.getpixel((3, 3)) == (n, 10 + n, 20)
        assert (picture.label, picture.boxes, picture.human) == (n % 3, [BOXES[n]], None)
        ids.add(picture.image_id)
    assert len(ids) == 5
    if write is not write_tars:
        assert data.class_names == CLASSES


def test_workers_read_shards_and_boxes_reach_the_models_view(tmp_path):
    data = open_data(write_parquet(tmp_path), tmp_path)(MODEL)
    batches = list(load_batches(data, ModelTransform(20, 20), [0, 3, 4], 2, 1))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0, 0, 1]
    # 40x30 shrinks to 27x20 (rounded up from 26.67) and loses 3 columns at the left.
    scale = 20 / 30
    found = batches[0].boxes[0][0].tolist()
    assert found[1::2] == pytest.approx([2 * scale, 18 * scale])
    assert found[2] - found[0] == pytest.approx(19 * scale, rel=0.02)


def test_several_boxes_or_none_of_an_image(tmp_path):
    boxes = [[[1, 1, 2, 2], [3, 3, 9, 9.5]], [], None]
    write_table(tmp_path / "a.parquet", range(3), boxes=boxes)
    data = open_data("parquet:a.parquet", tmp_path)(MODEL)
    assert [data.picture(n).boxes for n in range(3)] == [boxes[0], [], []]


@pytest.mark.parametrize("box", [[1, 2, 3], [9, 1, 2, 3], [1, 9, 2, 3]])
def test_a_box_that_is_none_is_named_with_its_row(box, tmp_path):
    write_table(tmp_path / "a.parquet", range(2), box=[BOXES[0], box])
    data = open_data("parquet:a.parquet", tmp_path)(MODEL)
    data.picture(0)
    with pytest.raises(UserError, match=r"a\.parquet, row 1: \[.*\] is no \[x0, y0, x1, y1\]"):
        data.picture(1)


def test_without_a_column_of_boxes_there_are_none(tmp_path):
    write_table(tmp_path / "a.parquet", range(2))
    write_tar(tmp_path / "a.tar", range(2), boxes=False)
    for text in ("parquet:a.parquet", "webdataset:a.tar"):
        data = open_data(text, tmp_path)(MODEL)
        assert not data.has_boxes and data.picture(1).boxes is None


def test_names_of_classes_decide_which_class_a_label_means(tmp_path):
    write_table(tmp_path / "a.parquet", range(3))
    of_model = open_data("parquet:a.parquet", tmp_path)
    assert [of_model(ModelView(8, 3, ("cat", "ant", "bee"))).picture(n).label for n in range(3)] == [1, 2, 0]
    more = of_model(ModelView(8, 4, ("dog", "cat", "ant", "bee")))
    assert more.num_classes == 4 and [more.picture(n).label for n in range(3)] == [2, 3, 1]
    assert of_model(ModelView(8, 5)).num_classes == 3  # which the run refuses
    with pytest.raises(UserError, match=r"parquet has the classes ant, bee, cat, \.\.\., the checkpoint x, y, z"):
        of_model(ModelView(8, 3, ("x", "y", "z")))


def test_wordnet_ids_of_a_few_classes_mean_imagenets(tmp_path):
    write_table(tmp_path / "a.parquet", range(3), ["n01443537", "n01440764", "n15075141"])
    data = open_data("parquet:a.parquet", tmp_path)(ModelView(8, 1000, tuple(imagenet_names())))
    assert data.num_classes == 1000 and [data.picture(n).label for n in range(3)] == [1, 0, 999]
    assert data.class_names[1] == "goldfish"


def test_labels_without_names_are_the_models_and_lie_among_its_classes(tmp_path):
    write_table(tmp_path / "a.parquet", range(3), None)
    data = open_data("parquet:a.parquet", tmp_path)(ModelView(8, 2))
    assert data.num_classes == 2 and data.picture(1).label == 1
    with pytest.raises(UserError, match=r"a\.parquet, row 2: label 2; the classes are 0 to 1"):
        data.picture(2)


def test_models_that_see_shards_alike_share_one(tmp_path):
    of_model = open_data(write_parquet(tmp_path), tmp_path)
    assert of_model(ModelView(8, 3)) is of_model(ModelView(99, 3)) is not of_model(ModelView(8, 4))


@pytest.mark.parametrize("write", [write_parquet, write_tars, write_repository])
def test_the_fingerprint_tells_other_data_from_the_same(write, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    text = write(tmp_path / "a")
    first = open_data(text, tmp_path / "a")(MODEL).fingerprint()
    assert first == open_data(text, tmp_path / "a")(MODEL).fingerprint()
    BOXES.append(BOXES.pop(0))
    try:
        write(tmp_path / "b")
    finally:
        BOXES.insert(0, BOXES.pop())
    assert open_data(text, tmp_path / "b")(MODEL).fingerprint() != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "--data nonsense: take one of clickme, imagefolder, hf:REPOSITORY, parquet:PATTERN, webdatase"),
        ("parquet", "--data parquet: take one of"),
        ("parquet:", "--data parquet:: take one of"),
        ("scenes:jpeg", "--data scenes:jpeg: take one of"),
        ("clickme", "--data clickme needs --data-root DIR, the folder that holds val-0.tfrecords"),
        ("parquet:*.none", r"parquet: no file fits '\*\.none'"),
        ("webdataset:a/*.tar", r"webdataset: no file fits 'a/\*\.tar'"),
    ],
)
def test_a_name_that_is_none_or_lacks_something_is_told(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        open_data(text)
    with pytest.raises(UserError, match=message):
        main(["--ckpt", "untrained", "--model", "demo", "--data", text, "--out", "out"])


def test_a_repository_without_validation_asks_which_split(tmp_path):
    for split in ("train", "test"):
        write_table(tmp_path / "repo" / f"{split}.parquet", range(2 if split == "test" else 4))
    with pytest.raises(UserError, match="hf:repo has the splits train, test; say which: --data hf:repo:SPLIT"):
        open_data("hf:repo", tmp_path)
    assert len(open_data("hf:repo:test", tmp_path)(MODEL)) == 2
    with pytest.raises(UserError, match="no such split; there are train, test"):
        open_data("hf:repo:val", tmp_path)
    (tmp_path / "repo" / "test.parquet").unlink()
    assert len(open_data("hf:repo", tmp_path)(MODEL)) == 4  # the only one


def test_a_run_on_shards_scores_boxes(shared_data, tmp_path):
    given = ["--ckpt", "untrained", "--model", "timm:resnet18", "--explainer", "centre", "--limit", "3"]
    given += ["--data", "parquet:val-*.parquet", "--data-root", str(shared_data / "tiny_imagenet")]
    assert main([*given, "--metric", "energy_pointing", "--workers", "0", "--out", str(tmp_path)]) == 0
    rows = pq.read_table(tmp_path / "per_image.parquet").to_pylist()
    stored = pq.read_table(next((shared_data / "tiny_imagenet").glob("val-*.parquet")), columns=["label", "box"])
    names = json.loads(stored.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    wnids = (shared_data / "imagenet_wnids.txt").read_text().split()
    assert len(rows) == 3
    for row in rows:
        label = stored.column("label")[row["index"]].as_py()
        assert row["label"] == wnids.index(names[label])
        assert row["energy_pointing"] is None or 0 < row["energy_pointing"] <= 1
    assert any(row["energy_pointing"] is not None for row in rows)
    (score,) = json.loads((tmp_path / "scores.json").read_text())
    assert score["data"]["name"] == "parquet" and score["data"]["n_images"] == 5000


# --- ClickMe in Parquet -----------------------------------------------------------------------------------------


def test_clickme_in_parquet_gives_the_rows_of_the_shards_it_was_made_from(clickme_root, tmp_path):
    convert(clickme_root, tmp_path / "table")
    given = ["--ckpt", "untrained", "--model", "timm:resnet18", "--explainer", "grad_cam", "centre", "--workers", "0"]
    given += ["--protocol", "paper", "aligned"]
    for name, root in {"shards": clickme_root, "parquet": tmp_path / "table"}.items():
        assert main([*given, "--data-root", str(root), "--out", str(tmp_path / name)]) == 0
    shards, parquet = (pq.read_table(tmp_path / name / "per_image.parquet") for name in ("shards", "parquet"))
    assert len(shards) == 7 * 2 * 2 and shards.equals(parquet)
    scores = [json.loads((tmp_path / name / "scores.json").read_text())[0] for name in ("shards", "parquet")]
    assert scores[0]["partial"] == scores[1]["partial"] == "15 published shards absent"


def test_records_in_parquet_are_those_of_the_shards(clickme_root, tmp_path):
    convert(clickme_root, tmp_path / "table")
    shards = ClickMe(clickme_root)
    for place in (tmp_path / "table", tmp_path / "table" / "data"):
        table = pickle.loads(pickle.dumps(ClickMeTable(place)))
        assert len(table) == len(shards) and table.missing_shards == shards.missing_shards
        for found, expected in zip(table, shards, strict=True):
            assert (found.label, found.image_id) == (expected.label, expected.image_id)
            assert np.array_equal(found.image, expected.image) and np.array_equal(found.heatmap, expected.heatmap)


def test_shards_go_before_parquet_where_both_lie(clickme_root, tmp_path):
    convert(clickme_root, tmp_path)
    assert isinstance(ClickMeData(tmp_path).records, ClickMeTable)
    (tmp_path / "val-0.tfrecords").write_bytes((clickme_root / "val-0.tfrecords").read_bytes())
    assert isinstance(ClickMeData(tmp_path).records, ClickMe)


def test_what_a_conversion_left_out_is_told_with_the_scores(tmp_path):
    good = {
        "image": jpeg(np.zeros((256, 256, 3), np.uint8)),
        "heatmap": jpeg(np.zeros((256, 256), np.uint8)),
        "label": 1,
    }
    write_records(tmp_path / "val-0.tfrecords", [encode_example(good | bad) for bad in ({}, {"label": 5000}, {})])
    convert(tmp_path / "val-0.tfrecords", tmp_path / "table", skip_bad=True)
    data = ClickMeData(tmp_path / "table")
    assert len(data) == 2 and data.picture(1).image_id == "val-0/00002"
    assert data.missing_parts == "16 published shards absent; 1 records left out by the conversion"


def test_parquet_of_something_else_or_a_part_of_it_is_no_clickme(clickme_root, tmp_path):
    write_table(tmp_path / "other" / "train-0.parquet", range(3))
    with pytest.raises(UserError, match="not every Parquet file has the columns image, label, heatmap, image_id"):
        ClickMeData(tmp_path / "other")
    convert(clickme_root, tmp_path / "table")
    next((tmp_path / "table" / "data").glob("*-00000-*")).unlink()
    with pytest.raises(UserError, match=r"and 0 more of manifest\.json are missing"):
        ClickMeData(tmp_path / "table")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no ClickMe shards"):
        ClickMeData(tmp_path / "empty")


def test_a_row_of_parquet_that_does_not_decode_is_named(clickme_root, tmp_path):
    convert(clickme_root, tmp_path / "table")
    path = sorted((tmp_path / "table" / "data").glob("*.parquet"))[0]
    rows = pq.read_table(path)
    broken = rows.slice(1, 1).to_pylist()[0] | {"heatmap": {"bytes": b"none", "path": "x.jpg"}}
    pq.write_table(pa.concat_tables([rows.slice(0, 1), pa.Table.from_pylist([broken], rows.schema)]), path)
    (path.parent / "manifest.json").unlink()
    data = ClickMeData(tmp_path / "table")
    data.picture(0)
    with pytest.raises(
        UserError, match=r"\.parquet, row 1 is no ClickMe record: its feature 'heatmap' does not decode"
    ):
        data.picture(1)


def test_the_registry_knows_each_data_set_by_the_name_it_bears():
    assert all(name == data.name for name, data in DATA_SETS.items())
    assert {name for name, data in DATA_SETS.items() if data.layout} == {"clickme", "imagefolder"}


# --- data that depend on the model ------------------------------------------------------------------------------


def test_each_checkpoint_keeps_its_own_scenes(tmp_path):
    """Two models of one run that take images of other sizes: neither gets the data or the fingerprint of the other."""
    sizes = {"small": 48, "large": 80}
    for name, size in sizes.items():
        save_untrained(tmp_path / name, transform=ModelTransform(size, size))
    given = ["--ckpt", *(str(tmp_path / name) for name in sizes), "--data", "scenes", "--limit", "4", "--workers", "0"]
    given += ["--explainer", "grad_cam", "--metric", "energy_pointing"]
    assert main([*given, "--out", str(tmp_path / "both")]) == 0
    scores = json.loads((tmp_path / "both" / "scores.json").read_text())
    told = {score["checkpoint"]: score["data"]["fingerprint"] for score in scores}
    assert told == {name: ScenesData(size).fingerprint() for name, size in sizes.items()}
    assert told["small"] != told["large"]
    both = pq.read_table(tmp_path / "both" / "per_image.parquet").to_pylist()
    for name in sizes:
        alone = [*given[:1], str(tmp_path / name), *given[3:], "--out", str(tmp_path / f"{name} alone")]
        assert main(alone) == 0
        rows = pq.read_table(tmp_path / f"{name} alone" / "per_image.parquet").to_pylist()
        assert [row for row in both if row["checkpoint"] == name] == rows and len(rows) == 4
