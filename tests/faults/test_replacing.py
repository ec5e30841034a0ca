"""A folder that is replaced is whole at its name at every instant, whatever fails."""

import errno
import os
import threading
from pathlib import Path

import pytest

from common import atomic
from common.atomic import atomic_folder, exchange

FAULTS = [errno.EIO, errno.ESTALE, errno.EXDEV, errno.ENOSPC]


def folder_of(path, text):
    path.mkdir()
    for name in "ab":
        (path / name).write_text(text)
    return path


def replace(path, text, **given):
    with atomic_folder(path, **given) as temporary:
        for name in "ab":
            (temporary / name).write_text(text)


def contents(path):
    return {name: (path / name).read_text() for name in "ab"}


def test_two_folders_change_places(tmp_path):
    one, other = folder_of(tmp_path / "one", "1"), folder_of(tmp_path / "other", "2")
    if not exchange(one, other):
        pytest.skip("this file system cannot exchange names")
    assert contents(one) == {"a": "2", "b": "2"} and contents(other) == {"a": "1", "b": "1"}
    with pytest.raises(OSError, match="none"):
        exchange(one, tmp_path / "none")
    assert contents(one)["a"] == "2"


def test_a_reader_finds_a_whole_folder_at_every_instant(tmp_path):
    path = folder_of(tmp_path / "d", "0")
    if not exchange(folder_of(tmp_path / "x", "x"), folder_of(tmp_path / "y", "y")):
        pytest.skip("this file system cannot exchange names")
    absent, seen, done = [], 0, threading.Event()

    def read():
        nonlocal seen
        while not done.is_set():
            seen += 1
            if not path.exists():
                absent.append(seen)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        replace(path, str(number))
    done.set()
    reader.join()
    assert seen > 0 and absent == [] and contents(path)["a"] == "199"


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("in_one_step", [True, False])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_rename_that_fails_leaves_the_old_folder_and_nothing_beside_it(
    tmp_path, monkeypatch, number, in_one_step, failing
):
    """The n-th of all renames; with fewer of them nothing fails, and the new folder is there."""
    path, calls = folder_of(tmp_path / "d", "old"), iter(range(100))
    real, exchanged = os.rename, exchange

    def fail(*_):
        if next(calls) == failing:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "rename", lambda *names: fail() or real(*names))
    monkeypatch.setattr(atomic, "exchange", lambda *two: (fail() or exchanged(*two)) if in_one_step else False)
    if failing < (1 if in_one_step else 2):
        with pytest.raises(OSError, match="d") as caught:
            replace(path, "new")
        assert caught.value.errno == number
        assert contents(path) == {"a": "old", "b": "old"}
    else:
        replace(path, "new")
        assert contents(path) == {"a": "new", "b": "new"}
    assert [place.name for place in tmp_path.iterdir()] == ["d"]


def test_what_shall_last_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    """And its name after it did; what need not last costs no time."""
    done: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.rename

    def synced(handle):
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        sync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", lambda *names: done.append(("rename", "")) or rename(*names))
    replace(tmp_path / "fast", "x")
    assert done == [("rename", "")]
    done.clear()
    replace(tmp_path / "lasting", "x", lasting=True)
    assert {name for kind, name in done[:2]} == {"a", "b"} and done[2][1].startswith(".lasting.")
    assert done[3:] == [("rename", ""), ("sync", tmp_path.name)]


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path):
    target = folder_of(tmp_path / "target", "mine")
    (tmp_path / "d").symlink_to(target)
    replace(tmp_path / "d", "new")
    assert contents(tmp_path / "d")["a"] == "new" and contents(target)["a"] == "mine"
    assert sorted(place.name for place in tmp_path.iterdir()) == ["d", "target"]
