"""Files and folders appear whole or not at all."""

import pytest

from common.atomic import atomic_file, atomic_folder, write_text


def test_write_text_replaces(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "one")
    write_text(tmp_path / "new" / "a.txt", "two")
    assert (tmp_path / "new" / "a.txt").read_text() == "two"
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_failure_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("good")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "good" and list(tmp_path.iterdir()) == [path]


def test_a_failure_keeps_the_old_folder_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "d"
    with atomic_folder(path) as temporary:
        (temporary / "x").write_text("good")
    with pytest.raises(RuntimeError), atomic_folder(path) as temporary:
        (temporary / "x").write_text("half")
        raise RuntimeError
    assert (path / "x").read_text() == "good" and list(tmp_path.iterdir()) == [path]
