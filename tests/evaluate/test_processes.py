"""What a process is told of its device."""

import pytest
import torch

from evaluate import processes
from evaluate.processes import default_workers, start_processes


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
