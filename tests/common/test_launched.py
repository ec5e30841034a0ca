"""Several processes that a launcher started work together or not at all."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import UserError
from common.launched import refuse_strangers, world_size
from evaluate.run.processes import start_processes

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("text", "together"), [(None, 1), ("1", 1), ("2", 2), ("8", 8)])
def test_processes_that_are_joined_may_work(monkeypatch, text, together):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if text:
        monkeypatch.setenv("WORLD_SIZE", text)
    refuse_strangers(together)


@pytest.mark.parametrize("text", ["", "two", "-1", "0", "9" * 5000, "²"])
def test_a_number_of_processes_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(UserError, match="WORLD_SIZE="):
        world_size()


def test_an_evaluation_whose_processes_are_not_joined_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("evaluate.run.processes.PartialState", lambda **_: SimpleNamespace(num_processes=1))
    with pytest.raises(UserError, match=r"started 2 processes.*ACCELERATE_USE_CPU=true"):
        start_processes("cpu")


@pytest.mark.slow
def test_torchrun_without_a_gpu_trains_nothing_twice(tmp_path):
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment = {k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"} | hidden
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29517"]
    places = [f"runs_dir={tmp_path}/runs", f"checkpoints_dir={tmp_path}/checkpoints"]
    command = [*launcher, "train/main.py", "recipe=demo", "smoke=true", *places]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode != 0
    assert "error: the launcher started 2 processes" in done.stderr and "ACCELERATE_USE_CPU=true" in done.stderr
    assert 'Traceback (most recent call last):\n  File "' not in done.stderr.partition("error: the launcher")[0]
    assert not (tmp_path / "runs").exists() and not (tmp_path / "checkpoints").exists()
