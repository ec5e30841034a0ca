"""What dead writers left is found and cleared away; what living ones write, and what is nobody's, stays."""

import os
import platform
import signal
import subprocess
import sys
import zlib

import pytest

from common import leftovers
from common.atomic import atomic_file, atomic_folder, write_text
from common.leftovers import clear_leftovers, temporary_file, temporary_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from common.atomic import {kind}
with {kind}(Path(sys.argv[1])) as temporary:
    (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_writing(path, kind):
    program = KILLED.format(kind=kind)
    ended = subprocess.run([sys.executable, "-c", program, str(path)], env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert ended.returncode == -signal.SIGKILL


def of_another_host(path, monkeypatch, make):
    with monkeypatch.context() as patch:
        patch.setattr(leftovers, "_host", lambda: "0123abcd")
        return make(path)


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_folder"])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path, kind):
    killed_while_writing(tmp_path / "name", kind)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".name.") and left.name.endswith(".part")
    write_text(tmp_path / "other", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_what_a_living_writer_writes_stays(tmp_path):
    with atomic_folder(tmp_path / "a") as folder, atomic_file(tmp_path / "b") as file:
        clear_leftovers(tmp_path, alone=True)  # by the same process
        program = f"from pathlib import Path; from common.atomic import write_text; write_text(Path({str(tmp_path)!r})"
        program += " / 'c', 'by another process')"
        subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
        assert folder.exists() and file.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_what_moved_aside_is_put_back_if_nothing_took_its_place(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from common.leftovers import temporary_folder; "
        "path = Path(sys.argv[1]); path.rename(temporary_folder(path, 'old') / path.name)"
    )
    for name, replaced in (("lost", False), ("replaced", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
        arguments = [sys.executable, "-c", program, str(tmp_path / name)]
        subprocess.run(arguments, check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
        if replaced:
            (tmp_path / name).mkdir()
            (tmp_path / name / "new").touch()
    clear_leftovers(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "lost", "lost/old", "replaced", "replaced/new",
    ]  # fmt: skip


def test_a_writer_of_another_host_counts_as_dead_only_where_nobody_else_may_write(tmp_path, monkeypatch):
    part = of_another_host(tmp_path / "a", monkeypatch, temporary_file)
    other = of_another_host(tmp_path / "b", monkeypatch, temporary_folder)
    clear_leftovers(tmp_path)
    assert part.exists() and other.exists()
    clear_leftovers(tmp_path, "a", alone=True)
    assert not part.exists() and other.exists()


def test_a_number_that_belongs_to_a_younger_process_is_a_dead_writers(tmp_path):
    name = temporary_file(tmp_path / "a").name
    _, _, owner, _, _ = name.split(".")
    host, pid, start = owner.split("-")
    numbering = os.readlink("/proc/self/ns/pid")
    assert host == f"{zlib.crc32(f'{platform.node()} {numbering}'.encode()):08x}" and int(pid) == os.getpid()
    (tmp_path / name.replace(f"-{start}.", f"-{int(start) - 1}.")).touch()
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", [".a.part", ".a.abcdefgh.part", "a.0123abcd-1-1.abcdefgh.part", ".mine.old", ".a"])
def test_names_of_others_stay(tmp_path, name):
    (tmp_path / name).touch()
    clear_leftovers(tmp_path, alone=True)
    assert (tmp_path / name).exists()
