"""What a process is told of its device."""

from types import SimpleNamespace

import pytest
import torch

from evaluate.run import processes
from evaluate.run.processes import default_workers, start_processes


def test_float32_on_a_gpu_is_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert start_processes("cpu").device.type == "cpu" and torch.backends.cudnn.allow_tf32
    assert start_processes("auto").device.type == "cuda" and not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("device", "cores", "local", "workers"),
    [("cpu", 64, "1", 2), ("cuda", 64, "1", 16), ("cuda", 64, "8", 8), ("cuda", 2, "8", 1)],
)
def test_readers_share_the_cores(device, cores, local, workers, monkeypatch):
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert default_workers(torch.device(device)) == workers


def test_a_process_of_several_keeps_its_model_where_it_is(monkeypatch):
    """Accelerate says `cpu:0`, to which torch would copy a model each time it is asked to move it there."""
    state = SimpleNamespace(process_index=1, num_processes=2, device=torch.device("cpu", 0))
    monkeypatch.setattr("evaluate.run.processes.PartialState", lambda **_: state)
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = start_processes("cpu")
    weights = torch.ones(1)
    assert (found.rank, found.world) == (1, 2) and weights.to(found.device) is weights
