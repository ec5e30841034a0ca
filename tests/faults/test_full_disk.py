"""A disk that is full at any time ends a command with one line that names the file; with room again it goes on."""

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.atomic import append_text
from common.checkpoint import load_checkpoint
from common.entry import run_command
from tests.faults.conftest import Attempt, Ended
from tests.faults.test_kills import figures_of
from tests.train.test_resume import arguments
from train.runs.run_folder import RunFolder
from train.watching.monitor import Monitor

Resize = Callable[[int], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Resize]:
    """A disk of so many kB, which may grow."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(size: int) -> Path:
        mounted = "remount," if os.path.ismount(place) else ""
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"{mounted}size={size}k", "tmpfs", place], check=True)
        return place

    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9k", "tmpfs", place]).returncode:
        pytest.skip("only root can make a small disk")
    yield resize
    subprocess.run(["umount", "--lazy", place], check=True)


def check_told(ended: Ended, place: Path) -> None:
    """One line, and nothing but locks and whole files left."""
    told = [line for line in ended.output.splitlines() if "rror" in line or "Traceback" in line]
    assert ended.status == 2 and len(told) == 1, ended.output
    assert told[0].startswith(f"error: {place}/") and "No space left on device; make room there" in told[0]
    assert not list(place.rglob(".*"))


@pytest.mark.parametrize("size", [4, 60, 900, 4500])
def test_training_goes_on_when_there_is_room_again(tmp_path: Path, disk: Resize, attempt: Attempt, size: int) -> None:
    place = disk(size)
    more = ["updates=3", "snapshots.every_updates=1", "log.tensorboard=true", "publish=true", "resume=auto"]
    given = ["train", *arguments(tmp_path, "disk/run", "data.workers=0", *more), f"checkpoints_dir={place}/checkpoints"]
    check_told(attempt(*given), place)
    disk(30_000)
    ended = attempt(*given)
    assert ended.status == 0, ended.output
    assert [line["update"] for line in figures_of(place / "run") if "train/loss" in line] == [1, 2, 3]
    load_checkpoint(place / "checkpoints" / "demo_dcls")


@pytest.mark.parametrize("size", [8, 680, 800])
def test_a_checkpoint_stays_where_there_is_no_room_for_the_next(
    tmp_path: Path, disk: Resize, attempt: Attempt, checkpoint: Path, size: int
) -> None:
    place = disk(30_000)
    assert attempt("train", *arguments(tmp_path, "run", "data.workers=0", "updates=1")).status == 0
    shutil.copytree(checkpoint, place / "net")
    used = sum(path.stat().st_size for path in place.rglob("*"))
    disk(used // 1024 + 16 + size - 8)
    given = ["publish", tmp_path / "run", "--name", "net", "--checkpoints", place, "--overwrite"]
    before = load_checkpoint(place / "net")[1]
    ended = attempt(*given)
    if size < 800:
        check_told(ended, place)
        assert load_checkpoint(place / "net")[1] == before
    disk(30_000)
    assert attempt(*given).status == 0 and load_checkpoint(place / "net")[1] != before


@pytest.mark.parametrize("size", [4, 24, 60, 120, 180])
def test_evaluating_goes_on_when_there_is_room_again(
    tmp_path: Path, disk: Resize, attempt: Attempt, checkpoint: Path, size: int
) -> None:
    place = disk(size)
    given = ["--ckpt", checkpoint, "--data", "scenes", "--limit", "4", "--workers", "0", "--device", "cpu"]
    command = ["evaluate", *given, "--explainer", "grad_cam", "--out", place / "out"]
    check_told(attempt(*command), place)
    disk(30_000)
    ended = attempt(*command)
    assert ended.status == 0, ended.output
    assert len(json.loads((place / "out" / "scores.json").read_text())) == 1


def test_the_file_that_grows_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    monitor = Monitor(RunFolder(tmp_path), True, 1, 0, tensorboard=False)
    try:
        assert run_command(lambda: monitor.scalars(1, 1.0, {"loss": 1.0})) == 2
    finally:
        monitor.close()
    assert f"error: {tmp_path}/metrics.jsonl: No space left on device; make room there" in capsys.readouterr().err
    append_text(tmp_path / "other", "a")
    append_text(tmp_path / "other", "b")
    assert (tmp_path / "other").read_text() == "ab"


def test_a_log_that_finds_no_room_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.log").symlink_to("/dev/full")
    monitor = Monitor(RunFolder(tmp_path), True, 1, 0, tensorboard=False)
    log = logging.getLogger("train")
    level = log.level
    try:
        log.setLevel(logging.INFO)
        log.info("a line")
    finally:
        log.setLevel(level)
        (handler,) = [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]
        handler.stream = None  # closing it would fail, too
        monitor.close()
    assert "Logging error" not in capsys.readouterr().err
