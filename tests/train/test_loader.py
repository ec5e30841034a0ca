"""The loader's processes: how many there are, what they hold, and what is said when one dies."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.train.conftest import ROOT, make_photographs
from train.configure import load_settings
from train.data import loader
from train.data.images import Photographs, open_data
from train.data.loader import LocalError, default_workers, load, loaders_alive, make_loader
from train.data.order import ValidationSampler
from train.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    make_photographs(tmp_path / "photos")
    small = ["data.image_size=32", "data.eval_size=32", "batch_size=2", "global_batch=2", "data.workers=2"]
    return load_settings(["recipe=convnext_t", f"data.root={tmp_path}/photos", "data.val_fraction=0.5", *small])


@pytest.mark.parametrize(
    ("cores", "processes", "workers"),
    [(1, 1, 0), (2, 1, 1), (2, 2, 1), (4, 1, 3), (8, 2, 3), (96, 8, 11), (13, 1, 12), (64, 1, 12), (4, 8, 1)],
)
def test_workers_follow_from_the_cores_of_each_process(
    cores: int, processes: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_workers() == workers


@pytest.mark.parametrize(("asked", "found"), [(None, 3), (0, 0), (5, 5), (99, 6)])
def test_workers_that_are_asked_for_are_taken(
    asked: int | None, found: int, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.os, "sched_getaffinity", lambda _: set(range(4)))
    settings.data.workers = asked
    _, val = open_data(settings)  # 6 batches
    assert make_loader(val, ValidationSampler(len(val), 2, 0, 1), settings, pin=False).num_workers == found


@pytest.mark.parametrize("name", ["convnext_t_dcls", "resnet50", "demo"])
def test_recipes_leave_workers_to_the_machine_but_for_the_demos(name: str) -> None:
    assert load_settings([f"recipe={name}"]).data.workers == (1 if name == "demo" else None)


def test_validation_that_waits_holds_one_batch_of_each_worker(settings: Settings, tmp_path: Path) -> None:
    _, val = open_data(settings)
    assert isinstance(val, Photographs)
    original = val.records.read

    def read(index: int) -> object:
        (tmp_path / f"read_{index}").touch()
        return original(index)

    val.records.read = read  # type: ignore[assignment,method-assign]
    waiting = make_loader(val, ValidationSampler(len(val), 2, 0, 1), settings, pin=False, stays=True)
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("read_*"))) < 4:
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.5)
    assert len(list(tmp_path.glob("read_*"))) == 4  # of 12
    for _ in range(2):
        assert sum(len(batch.labels) for batch in load(waiting)) == len(val) == 12


@pytest.mark.parametrize("recipe", ["convnext_t", "resnet50"])
def test_a_batch_without_room_in_shared_memory_is_one_line_and_nobody_waits(
    recipe: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "share_memory_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)  # what torch calls where nobody did before
    train, _ = open_data(load_settings([f"recipe={recipe}", f"data.root={settings.data.root}", "data.image_size=32"]))
    here, there = (settings, replace(settings, data=replace(settings.data, workers=0)))
    with pytest.raises(LocalError, match=r"shared memory \(.*No space left.*--ipc=host.*--shm-size.*data.workers"):
        list(load(make_loader(train, ValidationSampler(4, 2, 0, 1), here, pin=False)))
    assert len(list(load(make_loader(train, ValidationSampler(4, 2, 0, 1), there, pin=False)))) == 2


DEADLY = """
import os, signal, sys
from common.entry import run_command
from train import loop
from train.data import images
from train.run import main

trainer, number, decode, clip = os.getpid(), getattr(signal, sys.argv[1]), images.decode_image, loop._clip

def deadly(content, where):
    if os.getpid() != trainer and where.endswith(sys.argv[3]):
        os.kill(os.getpid(), number)
    return decode(content, where)

def busy(session):
    while sys.argv[2] == "busy":  # the loader dies while the trainer computes
        sum(range(1000))
    return clip(session)

images.decode_image, loop._clip = deadly, busy
sys.exit(run_command(lambda: main(sys.argv[4:])))
"""


@pytest.mark.parametrize(
    ("number", "named", "trainer", "picture"),
    [
        ("SIGBUS", "Bus error", "busy", "train/fox/1.jpg"),
        ("SIGKILL", "Killed", "waiting", "train/fox/1.jpg"),
        ("SIGBUS", "Bus error", "waiting", "val/fox/1.jpg"),
    ],
)
def test_a_loaders_process_that_dies_is_one_line_that_names_shared_memory(
    number: str, named: str, trainer: str, picture: str, tmp_path: Path
) -> None:
    make_photographs(tmp_path / "photos" / "train", each=2)
    make_photographs(tmp_path / "photos" / "val", each=2)
    given = ["recipe=demo_dcls", "data.source=imagefolder", f"data.root={tmp_path}/photos", f"runs_dir={tmp_path}/runs"]
    given += ["data.image_size=32", "data.eval_size=32", "batch_size=1", "eval_batch_size=1", "global_batch=1"]
    given += ["data.workers=2", "updates=40", "optim.name=adamw", "log.tensorboard=false", "publish=false", "threads=1"]
    command = [sys.executable, "-c", DEADLY, number, trainer, picture, *given]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    ended = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
    lines = ended.stderr.replace("\0", "").splitlines()  # torch ends its own remark on a bus error with one
    (error,) = (line for line in lines if line.startswith("error: "))
    assert all(word in error for word in (f"signal: {named}", "--ipc=host", "--shm-size", "data.workers", "batch_size"))


def test_other_errors_pass_a_living_loader() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), loaders_alive():
        raise RuntimeError("out of memory")
