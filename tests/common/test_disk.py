"""A disk that fails ends a command with one line, whatever a library made of it; a fault of ours stays one."""

import errno
import os
import subprocess

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from common import disk
from common.atomic import atomic_file, atomic_folder, write_text
from common.entry import run_command


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 200 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", place]).returncode:
        pytest.skip("only root can make a small disk")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # libraries leave files open when they fail


def failing(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EXDEV])
@pytest.mark.parametrize("name", [None, "place"])
def test_a_disk_that_fails_is_told_with_or_without_a_name(number, name, capsys):
    assert run_command(failing(OSError(number, os.strerror(number), name))) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and os.strerror(number) in told and told.count("\n") == 1
    assert name is None or name in told


def test_a_disk_that_fails_is_found_behind_another_error_and_what_is_kept_is_told(capsys):
    error = RuntimeError("unexpected pos 64 vs 0")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device", "weights.pt")
    error.add_note("the last snapshot is whole")
    assert run_command(failing(error)) == 2
    told = capsys.readouterr().err
    assert "weights.pt: No space left on device" in told and "the last snapshot is whole" in told


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a fault of ours"),
        OSError("without a number"),
        PermissionError(errno.EACCES, "Permission denied"),  # of no place that a user could mend
    ],
)
def test_a_fault_of_ours_passes_through(error, tmp_path):
    with pytest.raises(type(error)) as caught:
        run_command(failing(error))
    assert caught.value is error
    with pytest.raises(type(error)) as caught, atomic_file(tmp_path / "a"):
        raise error
    assert caught.value is error


def test_an_error_raised_after_a_refusal_that_was_dealt_with_is_ours():
    """Only a failing disk counts behind other errors."""
    error = RuntimeError("a fault of ours")
    error.__context__ = FileNotFoundError(errno.ENOENT, "No such file", "optional.json")
    with pytest.raises(RuntimeError):
        run_command(failing(error))


def test_the_disk_is_asked_where_a_library_does_not_tell(tmp_path, monkeypatch, capsys):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def main():
        with atomic_file(tmp_path / "weights.pt"):
            raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(RuntimeError):
        run_command(main)
    monkeypatch.setattr(disk.tempfile, "TemporaryFile", full)
    assert run_command(main) == 2
    assert f"error: {tmp_path / 'weights.pt'}: No space left on device" in capsys.readouterr().err


def write_events(path):
    with SummaryWriter(str(path)) as writer:
        for step in range(20):
            writer.add_text("text", "x" * 20_000, step)


NOISE = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
COLOURS = np.random.default_rng(0).random((400, 400, 3))


@pytest.mark.parametrize(
    ("write", "whole"),
    [
        (lambda path: torch.save({"a": NOISE}, path), atomic_file),
        (lambda path: torch.save({"a": NOISE}, path / "state.pt"), atomic_folder),
        (lambda path: save_file({"a": NOISE}, path), atomic_file),
        (lambda path: np.save(path.open("wb"), NOISE.numpy()), atomic_file),
        (lambda path: pq.write_table(pa.table({"a": NOISE.numpy()}), path), atomic_file),
        (lambda path: plt.imsave(path, COLOURS, format="png"), atomic_file),
        (lambda path: plt.imsave(path, COLOURS, format="pdf"), atomic_file),
        (write_events, atomic_folder),
        (lambda path: path.write_text("x" * 400_000), atomic_file),
    ],
    ids=["torch", "snapshot", "safetensors", "numpy", "parquet", "png", "pdf", "events", "text"],
)
def test_every_kind_of_file_on_a_full_disk(write, whole, small_disk, capsys):
    write_text(small_disk / "before.txt", "kept")

    def main():
        with whole(small_disk / "new") as temporary:
            write(temporary)

    assert run_command(main) == 2
    told = capsys.readouterr().err
    assert f"{small_disk}" in told and "No space left on device" in told and told.count("\n") == 1
    assert [path.name for path in small_disk.iterdir()] == ["before.txt"]
    assert (small_disk / "before.txt").read_text() == "kept"
