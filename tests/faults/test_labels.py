"""Tables of labels, names of files and recipes that are damaged or hostile: one line that names file and place."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from common.data.tables import open_folders
from common.errors import UserError
from evaluate.data.folder import FolderData
from evaluate.data.labels import read_labels
from tests.faults.damage import bounded, damages
from train.configure import load_settings
from train.settings import DataSettings


def refused(tmp_path, content, line):
    """The table is refused in one short line that names it and the line."""
    table = tmp_path / "t.csv"
    table.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_labels(table, 10)
    text = str(caught.value)
    assert text.startswith(f"{table}, line {line}: ") and "\n" not in text and len(text) < len(str(table)) + 200
    return text.removeprefix(f"{table}, line {line}: ")


def row(file="a.png", label="3", boxes=""):
    """The table's second row is this one."""
    boxes = json.dumps(json.dumps(boxes) if not isinstance(boxes, str) else boxes).replace('\\"', '""')
    return f"file,label,boxes\nok.png,1,\n{file},{label},{boxes}\n".encode()


@pytest.mark.parametrize("label", ["²", "-1", "1.0", " 1", "", "٣", "9" * 5000, "cat"])
def test_a_label_is_a_class_index_in_plain_digits(tmp_path, label):
    assert refused(tmp_path, row(label=label), 3).startswith(f"'a.png', '{label[:50]}")


def test_a_label_may_have_leading_zeros_and_must_be_a_class_of_the_model(tmp_path):
    (tmp_path / "t.csv").write_bytes(row(label="009"))
    assert read_labels(tmp_path / "t.csv", 10).labels == [1, 9]
    assert "label 10; the model has classes 0 to 9" in refused(tmp_path, row(label="10"), 3)


@pytest.mark.parametrize("file", ["../x.png", "a/../../x.png", "..", "/etc/x.png", "a/b/../../../x.png"])
def test_files_outside_the_data_folder_are_refused(tmp_path, file):
    assert refused(tmp_path, row(file=file), 3) == f"{file!r} lies outside the data folder; name files relative to it"


def test_dots_in_names_of_files_inside_are_no_way_out(tmp_path):
    for file in ("..x.png", "a/../x.png", "./x.png", "a/..b/x.png"):
        (tmp_path / "t.csv").write_bytes(row(file=file))
        assert read_labels(tmp_path / "t.csv", 10).files == ["ok.png", file]


@pytest.mark.parametrize(
    "boxes",
    [
        [[4, 1, 2, 3]], [[1, 4, 3, 2]], [[1, 1, 1, 5]], [[1, 1, -2, -3]],  # backwards, of no size
        "[[NaN, 1, 2, 3]]", "[[1, 1, Infinity, 3]]", "[[-Infinity, 1, 2, 3]]", "[[1, 1, 1e999, 3]]",
        f"[[0, 0, {'9' * 400}, 1]]", f"[[0, 0, {'9' * 5000}, 1]]",
        [[1, 2, 3]], [1, 2, 3, 4], {"1234": 0}, ["1234"], [["1", "2", "3", "4"]], [[True, 0, 2, 2]], [None], 7,
        "[[1, 2", "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_box_is_refused(tmp_path, boxes):
    assert "no JSON list of [x0, y0, x1, y1]" in refused(tmp_path, row(boxes=boxes), 3)


def test_boxes_of_whole_and_broken_numbers_are_taken(tmp_path):
    (tmp_path / "t.csv").write_bytes(row(boxes=[[0, 0.5, 2, 3e2], [-4, -5, -3, -2]]))
    assert read_labels(tmp_path / "t.csv", 10).boxes == [[], [[0.0, 0.5, 2.0, 300.0], [-4.0, -5.0, -3.0, -2.0]]]


def test_a_table_that_is_not_utf_8_is_named_with_the_line(tmp_path):
    told = refused(tmp_path, "file,label\nok.png,1\nhé.png,2\n".encode("latin-1"), 3)
    assert "not UTF-8; save the table as UTF-8" in told
    (tmp_path / "t.csv").write_bytes("\ufefffile,label\nhé.png,2\n".encode())  # as spreadsheets write it
    assert read_labels(tmp_path / "t.csv", 10).files == ["hé.png"]


def test_long_fields_and_open_quotes_are_named_with_the_line(tmp_path):
    assert "field larger than field limit" in refused(tmp_path, row(file="x" * 200_000), 3)
    assert "is a quote missing?" in refused(tmp_path, b'file,label\n"a.png,3\nb.png,4\n', 3)
    assert "give the name of an image" in refused(tmp_path, row(file=""), 3)
    assert "give the name of an image" in refused(tmp_path, row(file="a\0.png"), 3)


def test_the_line_is_that_of_the_file_where_rows_are_longer_or_lines_empty(tmp_path):
    content = b'file,label,boxes\n\n\nok.png,1,"[[0, 0,\n 1, 1]]"\nx.png,cat,\n'
    assert refused(tmp_path, content, 6).startswith("'x.png', 'cat'")


WHOLE = b"file,label,boxes\n" + b"".join(b'p/%d.png,%d,"[[1, 2, %d, 4]]"\n' % (n, n % 10, n + 2) for n in range(30))


@bounded
@given(damage=damages)
def test_a_damaged_table_is_read_or_refused_in_one_line(tmp_path, damage):
    table = tmp_path / "t.csv"
    table.write_bytes(damage(WHOLE))
    try:
        found = read_labels(table, 10)
    except UserError as error:
        assert str(error).startswith(str(table)) and "\n" not in str(error)
    else:
        assert found.files and all(0 <= label < 10 for label in found.labels)
        assert all(not os.path.isabs(file) and os.path.normpath(file)[:3] != "../" for file in found.files)
        for x0, y0, x1, y1 in (box for boxes in found.boxes or [] for box in boxes):
            assert x0 < x1 < float("inf") and y0 < y1 < float("inf")


# --- names that are not UTF-8 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"cat/caf\xe9.png", b"caf\xe9/1.png", b"cat/caf\xe9/1.png"])
def test_names_in_class_folders_that_are_not_utf_8_are_refused_in_training_and_evaluation(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(path))
    (tmp_path / "dog").mkdir()
    for place in (path, os.fsencode(tmp_path / "dog" / "1.png")):
        with open(place, "wb") as file:
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file, "PNG")
    for read in (
        lambda: FolderData(tmp_path),
        lambda: open_folders(DataSettings(root=str(tmp_path), val_fraction=0.5)),
    ):
        with pytest.raises(UserError, match=r"caf\\xe9.*the name is not UTF-8; rename it") as caught:
            read()
        str(caught.value).encode()  # can be printed anywhere


def test_a_recipe_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_bytes("name: hé\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"mine\.yaml cannot be read: .*utf-8"):
        load_settings(["recipe=mine"], tmp_path)
