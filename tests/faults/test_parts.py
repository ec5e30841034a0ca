"""Parts of an evaluation that are damaged, foreign or out of date are measured again, never taken for right."""

import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from PIL import Image

from common.errors import UserError
from evaluate.cli.main import main
from evaluate.data.clickme import ClickMeData
from evaluate.data.folder import FolderData
from evaluate.data.loader import choose_indices
from evaluate.data.scenes import ScenesData
from evaluate.rows import SHARED_PASS
from evaluate.run.parts import PartStore
from tests.faults.damage import bounded, damaged, damages, flipped

ROWS = [{"image_id": f"val/{n}", "index": n, "checkpoint": "net", "spearman": n / 7} for n in range(40)]


@pytest.fixture
def store(tmp_path):
    """Two parts, of which the first is there."""
    store = PartStore(tmp_path, "net", {"weights": 1}, [range(40), range(40, 80)])
    store.write(0, ROWS, 1.5, {SHARED_PASS: 1.0}, {"grad_cam": "a note"})
    return store


def all_readable(index):
    return True


def test_a_part_that_is_whole_is_read_as_it_was_written(store):
    assert store.finished(all_readable) == [0]
    (table,) = [store._read(0)]
    assert table.column("spearman").to_pylist() == [row["spearman"] for row in ROWS]
    assert table.schema.metadata[b"seconds"] == b"1.5"


@bounded
@given(damage=damages)
@example(damage=lambda content: flipped(content, 0.5))
@example(damage=lambda content: content.replace(b"1.5", b"2.5"))  # in the footer, which Parquet never checks
@example(damage=lambda content: b"")
def test_whatever_happens_to_a_part_it_is_not_taken_for_a_whole_one(store, damage):
    path = store.path(0)
    whole = path.read_bytes()
    try:
        changed = damaged(path, whole, damage)
        assert store.finished(all_readable) == ([] if changed else [0])
    finally:
        path.write_bytes(whole)


def test_every_damaged_part_is_named_in_one_line(store, capsys):
    store.path(0).write_bytes(flipped(store.path(0).read_bytes(), 0.3))
    (store.path(1)).mkdir()
    assert store.finished(all_readable) == []
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("warning: ") and line.endswith("measured again") for line in lines] == [True, True]
    assert "00000.parquet" in lines[0] and "00001.parquet" in lines[1]


def test_a_part_of_another_question_or_place_is_foreign(store, tmp_path, capsys):
    other = PartStore(tmp_path, "net", {"weights": 2}, [range(40), range(40, 80)])
    other.folder.mkdir()
    other.path(0).write_bytes(store.path(0).read_bytes())
    store.path(1).write_bytes(store.path(0).read_bytes())
    assert other.finished(all_readable) == [] and store.finished(all_readable) == [0]
    assert capsys.readouterr().err.count("of an evaluation, not") == 2


def test_a_part_that_is_damaged_while_the_run_goes_on_stops_it_with_a_line(store):
    store.path(0).write_bytes(flipped(store.path(0).read_bytes(), 0.3))
    with pytest.raises(UserError, match=r"00000\.parquet does not fit its hash; its images"):
        list(store.tables())


@pytest.fixture
def run(checkpoint, monkeypatch, tmp_path, capsys):
    """Evaluate 14 scenes in 4 parts; gives what was printed and the table."""
    monkeypatch.setattr("evaluate.run.identity.CHUNK", 4)
    out = tmp_path / "out"

    def evaluate(*more):
        main(["--ckpt", str(checkpoint), "--data", "scenes", "--limit", "14", "--workers", "0", "--explainer",
              "grad_cam", "--out", str(out), *more])  # fmt: skip
        printed = capsys.readouterr()
        return printed.out + printed.err, pq.read_table(out / "per_image.parquet")

    return evaluate


def test_damaged_parts_are_measured_again_and_the_scores_are_the_same(run, tmp_path):
    _, expected = run()
    parts = sorted(tmp_path.glob("out/parts/*/*"))
    parts[1].write_bytes(flipped(parts[1].read_bytes(), 0.4))
    parts[2].write_bytes(parts[0].read_bytes())
    parts[3].write_text("no Parquet")
    printed, found = run()
    assert found.equals(expected) and "1 of 4 parts kept" in printed
    warnings = [line for line in printed.splitlines() if line.startswith("warning")]
    assert len(warnings) == 3 and all(str(part) in line for line, part in zip(warnings, parts[1:]))


def test_images_that_were_left_out_are_tried_again(run, tmp_path, monkeypatch):
    _, expected = run()
    for part in tmp_path.glob("out/parts/*/*"):
        part.unlink()
    picture, bad = ScenesData.picture, {*choose_indices(1000, 14, 0).tolist()[5:7]}

    def some(self, index):
        if index in bad:
            raise UserError(f"no picture {index}")
        return picture(self, index)

    monkeypatch.setattr(ScenesData, "picture", some)
    assert run("--skip-bad")[1].num_rows == 12
    printed, found = run("--skip-bad")
    assert found.num_rows == 12 and "4 of 4 parts kept" in printed  # it is still not to be read
    bad.pop()
    printed, found = run("--skip-bad")
    assert found.num_rows == 13 and "3 of 4 parts kept" in printed
    bad.clear()
    printed, found = run("--skip-bad")
    assert found.equals(expected) and "left out" not in printed


def test_a_picture_or_shard_that_is_replaced_by_one_of_equal_size_is_other_data(clickme_root, tmp_path):
    folder = tmp_path / "photographs" / "n01443537"
    folder.mkdir(parents=True)
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / "1.bmp")
    shard = tmp_path / "val-0.tfrecords"
    shard.write_bytes((clickme_root / "val-0.tfrecords").read_bytes())
    for data, file in ((FolderData(folder.parent), folder / "1.bmp"), (ClickMeData(tmp_path), shard)):
        first, time = data.fingerprint(), file.stat().st_mtime_ns
        assert data.fingerprint() == first
        file.write_bytes(flipped(file.read_bytes(), 0.9))
        os.utime(file, ns=(time, time + 1))  # however coarse the clock of the file system
        assert data.fingerprint() != first
