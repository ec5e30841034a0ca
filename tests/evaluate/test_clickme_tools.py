"""The Parquet data set against the shards it was made from; downloads of shards from a local server."""

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from common import download as download_module
from common.data.clickme import ClickMe
from common.data.manifest import check_files
from common.data.tfrecord import encode_example, index_records, parse_example, read_record, write_records
from common.errors import UserError
from evaluate.clickme import command as clickme_tools
from evaluate.clickme import parquet as clickme_parquet
from evaluate.clickme.command import download_split, main
from evaluate.clickme.parquet import class_names, convert
from tests.local_server import local_server


def jpeg(mode, seed):
    shape = (256, 256, 3) if mode == "RGB" else (256, 256)
    coarse = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).save(buffer, "JPEG", quality=30)
    return buffer.getvalue()


def record(number, **changes):
    features = {"image": jpeg("RGB", number), "heatmap": jpeg("L", number), "label": 100 + number} | changes
    return encode_example(features)


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    write_records(folder / "val-0.tfrecords", [record(n) for n in range(7)])
    write_records(folder / "val-2.tfrecords", [record(n) for n in range(7, 9)])
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("DCLS_ALIGN_CACHE", str(tmp_path / "cache"))


def raw_records(root):
    """Stored values of every record, straight from the shards."""
    found = {}
    for shard in ClickMe(root).shards:
        for number, offset in enumerate(index_records(shard).offsets):
            found[f"{shard.stem}/{number:05d}"] = parse_example(read_record(shard, int(offset), number))
    return found


def check_round_trip(root, folder, split):
    data = datasets.load_dataset(str(folder), split=split)
    expected = raw_records(root)
    assert data.column_names == ["image", "heatmap", "label", "image_id"]
    assert list(data["image_id"]) == list(expected)
    stored = data.cast_column("image", datasets.Image(decode=False)).cast_column(
        "heatmap", datasets.Image(decode=False)
    )
    for row, decoded, values in zip(stored, data, expected.values(), strict=True):
        assert [row["image"]["bytes"], row["heatmap"]["bytes"], row["label"]] == [
            values["image"][0],
            values["heatmap"][0],
            values["label"][0],
        ]
        assert (decoded["image"].mode, decoded["heatmap"].mode) == ("RGB", "L")
        assert decoded["image"].size == decoded["heatmap"].size == (256, 256)
    return data


def test_round_trip(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(clickme_parquet, "ROWS_IN_GROUP", 3)
    result = convert(shards, tmp_path / "out")
    assert result == ("validation", 9, [])
    data = check_round_trip(shards, tmp_path / "out", "validation")
    assert data.features["label"].num_classes == 1000 and data.features["label"].int2str(107) == "jellyfish"
    files = sorted((tmp_path / "out" / "data").glob("*.parquet"))
    assert [path.name for path in files] == ["validation-00000-of-00002.parquet", "validation-00001-of-00002.parquet"]
    groups = pq.ParquetFile(files[0]).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [3, 3, 1]


def test_the_files_alone_load_with_their_features(shards, tmp_path):
    convert(shards, tmp_path / "out")
    files = sorted(str(path) for path in (tmp_path / "out" / "data").glob("*.parquet"))
    data = datasets.load_dataset("parquet", data_files=files, split="train")
    assert isinstance(data.features["image"], datasets.Image) and data[8]["label"] == 108


def test_real_shards(shared_data, tmp_path):
    root = shared_data / "clickme"
    assert main(["convert", "--data-root", str(root), "--to", str(tmp_path / "out")]) == 0
    assert len(check_round_trip(root, tmp_path / "out", "validation")) == 16


def test_training_shards_become_the_train_split(tmp_path):
    write_records(tmp_path / "train-5.tfrecords", [record(1)])
    assert convert(tmp_path / "train-5.tfrecords", tmp_path / "out").split == "train"
    assert len(datasets.load_dataset(str(tmp_path / "out"))["train"]) == 1


def test_the_card_says_what_is_missing(shards, tmp_path):
    convert(shards, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "9 records of the `validation` split" in card and "15 of the published shards are absent" in card


def test_class_names_are_distinct():
    names = class_names()
    assert len(set(names)) == 1000 and names[0] == "tench"
    assert [i for i, name in enumerate(names) if name.startswith("crane")] == [134, 517]


@pytest.mark.parametrize("skip", [False, True])
def test_a_bad_record_stops_the_conversion_or_is_listed(shards, tmp_path, capsys, skip):
    write_records(shards / "val-1.tfrecords", [record(1), record(2, image=b"no picture"), record(3, label=1000)])
    command = ["convert", "--data-root", str(shards), "--to", str(tmp_path / "out")] + ["--skip-bad"] * skip
    if not skip:
        with pytest.raises(UserError, match=r"val-1\.tfrecords: record 1 .*--skip-bad"):
            main(command)
        assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["shards"]
        return
    assert main(command) == 0
    told = capsys.readouterr()
    assert "10 records" in told.out and "(2 left out)" in told.out
    assert [line.split(": ")[2][:8] for line in told.err.splitlines() if line.startswith("left out")] == [
        "record 1",
        "record 2",
    ]
    assert len(datasets.load_dataset(str(tmp_path / "out"), split="validation")) == 10
    assert "2 records were left out" in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_in_the_way_is_left_alone(shards, tmp_path):
    with pytest.raises(UserError, match="shards exists already"):
        convert(shards, shards)
    (tmp_path / "empty").mkdir()
    assert convert(shards, tmp_path / "empty").records == 9


@pytest.fixture
def server(monkeypatch, shards):
    monkeypatch.setattr(download_module, "FIRST_PAUSE", 0.01)
    monkeypatch.setitem(clickme_tools.PUBLISHED_SHARDS, "val", 3)
    with local_server() as server:
        monkeypatch.setattr(clickme_tools, "PUBLISHED_AT", f"127.0.0.1:{server.server_port}/click-me")
        for number, source in enumerate(["val-0", "val-2", "val-2"]):
            path = f"/click-me/val/val-{number}.tfrecords"
            server.files[path] = (shards / f"{source}.tfrecords").read_bytes()
        yield server


def test_the_addresses_are_the_published_ones():
    published = "https://storage.googleapis.com/serrelab/prj_harmonization/dataset/click-me/"
    assert clickme_tools.shard_url("val", "val-16.tfrecords") == published + "val/val-16.tfrecords"
    assert clickme_tools.shard_url("train", "train-0.tfrecords") == published + "train/train-0.tfrecords"


def test_download_fetches_what_is_missing_and_goes_on_where_it_was_cut(server, tmp_path, capsys):
    server.cuts = [1000, 5000]
    assert main(["download", "--to", str(tmp_path / "clickme")]) == 0
    assert "3 shards with 11 records" in capsys.readouterr().out
    assert len(ClickMe(tmp_path / "clickme")) == 11
    assert [span for path, span in server.requests if path.endswith("val-0.tfrecords")] == [
        None,
        "bytes=1000-",
        "bytes=6000-",
    ]

    server.requests.clear()
    shards = download_split("val", tmp_path / "clickme")
    assert not server.requests  # all there: no connection needed
    shards[1].write_bytes(shards[1].read_bytes()[:-5])
    download_split("val", tmp_path / "clickme")
    assert [path for path, _ in server.requests] == ["/click-me/val/val-1.tfrecords"]
    assert len(ClickMe(tmp_path / "clickme")) == 11


def test_downloaded_shards_are_listed_and_one_that_changes_is_refused_and_fetched_again(server, tmp_path):
    assert main(["download", "--to", str(tmp_path / "x"), "--shards", "0"]) == 0
    assert main(["download", "--to", str(tmp_path / "x"), "--shards", "1"]) == 0
    folder = tmp_path / "x" / "val"
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    for number, name in enumerate(["val-0.tfrecords", "val-1.tfrecords"]):
        content = server.files[f"/click-me/val/val-{number}.tfrecords"]
        assert listed[name] == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert len(ClickMe(tmp_path / "x")) == 9
    shard = folder / "val-0.tfrecords"
    content = bytearray(shard.read_bytes())
    content[500] ^= 1  # within a payload, so the framing is whole
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"val-0\.tfrecords has the SHA-256 .* get it again"):
        ClickMe(tmp_path / "x")
    server.requests.clear()
    download_split("val", tmp_path / "x")
    assert [path for path, _ in server.requests] == ["/click-me/val/val-0.tfrecords", "/click-me/val/val-2.tfrecords"]
    assert len(ClickMe(tmp_path / "x")) == 11


def test_a_conversion_lists_its_files_which_are_checked_before_training(shards, tmp_path):
    convert(shards, tmp_path / "out")
    path = tmp_path / "out" / "data" / "validation-00001-of-00002.parquet"
    check_files(sorted(path.parent.glob("*.parquet")))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"00001-of-00002\.parquet has the SHA-256"):
        check_files(sorted(path.parent.glob("*.parquet")))
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(path, page_checksum_verification=True)


def test_download_of_single_shards(server, tmp_path):
    assert [path.name for path in download_split("val", tmp_path / "x", [2, 0, 2])] == [
        "val-0.tfrecords",
        "val-2.tfrecords",
    ]
    with pytest.raises(UserError, match=r"--shards \[3\]: split 'val' has the shards 0 to 2"):
        download_split("val", tmp_path / "x", [1, 3])


def test_what_is_no_shard_is_not_kept(server, tmp_path):
    server.files["/click-me/val/val-1.tfrecords"] = b"<html>Sorry</html>"
    with pytest.raises(UserError, match=r"val-1\.tfrecords is no TFRecord shard"):
        download_split("val", tmp_path / "x")
    assert [path.name for path in (tmp_path / "x" / "val").iterdir()] == ["val-0.tfrecords"]


def test_the_command_line_speaks_in_one_line(tmp_path):
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "evaluate.clickme",
        "convert",
        "--data-root",
        str(tmp_path),
        "--to",
        str(tmp_path / "x"),
    ]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "holds no ClickMe shards" in done.stderr
    assert "Traceback" not in done.stderr and "RuntimeWarning" not in done.stderr
