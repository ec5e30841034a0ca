"""`compile=true` with what runs on GPUs: bfloat16, accumulation, several processes. On a CPU, through the command."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests.train import without_code_generation
from tests.train.conftest import Launched, metrics

SMALL = [
    "recipe=demo_dcls",
    "smoke=true",
    "updates=3",
    "schedule.warmup_epochs=0",
    "model_args.widths=[8]",
    "model_args.depths=[2]",  # two layers share their positions
    "dcls.dilated_kernel_size=5",
    "dcls.kernel_count=4",
    "data.image_size=32",
    "data.eval_size=32",
    "data.workers=0",
    "global_batch=8",
    "batch_size=2",
    "optim.name=adamw",
    "threads=1",
    "log.tensorboard=false",
    "publish=false",
]
TWO = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
TWO += ["--rdzv-endpoint=localhost:0"]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_compiled_training_is_the_same_training_with_accumulation(
    precision: str, tolerance: float, train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four micro-batches an update; the code itself is not generated, see the slow tests."""
    monkeypatch.setattr(nn.Module, "compile", without_code_generation.COMPILE)
    torch._dynamo.reset()
    counters.clear()
    given = [*SMALL, f"precision={precision}"]
    plain = train_here(*given, run_dir="plain")
    assert not counters["stats"]
    compiled = train_here(*given, "compile=true", run_dir="compiled")
    assert counters["stats"]["unique_graphs"] and not counters["graph_break"]
    for name in ("train/loss", "train/grad_norm", "val_raw/loss", "val_ema/loss"):
        expected = metrics(plain, name)
        assert expected and metrics(compiled, name) == pytest.approx(expected, rel=tolerance)


def check_two_processes(
    tmp_path: Path, launch: Callable[..., Launched], train_here: Callable[..., Path], script: list[str]
) -> str:
    """Two compiled processes of two micro-batches learn as a plain one of four does; returns what they say."""
    given = [*SMALL, "precision=bf16"]
    run = launch([*given, "compile=true", f"run_dir={tmp_path}/compiled"], launcher=[*TWO, *script])
    assert run.returncode == 0 and "8 images = 2 process(es) x 2 x 2, bf16, cpu" in run.output
    plain = train_here(*given, run_dir="plain")
    for name in ("train/loss", "train/grad_norm"):
        expected = metrics(plain, name)
        assert expected.keys() == {1, 2, 3}
        assert metrics(tmp_path / "compiled", name) == pytest.approx(expected, rel=1e-2)
    return run.output


@pytest.mark.slow
def test_compiled_training_in_two_processes(
    tmp_path: Path, launch: Callable[..., Launched], train_here: Callable[..., Path]
) -> None:
    said = check_two_processes(tmp_path, launch, train_here, [without_code_generation.__file__])
    counted = [json.loads(line) for line in re.findall(r"^counters (.*)$", said, re.MULTILINE)]
    assert len(counted) == 2
    for process in counted:
        assert process["frames"]["total"] == process["frames"]["ok"] > 0 and "graph_break" not in process


@pytest.mark.slow
def test_generated_code_in_two_processes(
    tmp_path: Path, launch: Callable[..., Launched], train_here: Callable[..., Path]
) -> None:
    check_two_processes(tmp_path, launch, train_here, [])


def test_one_graph_for_training_and_one_for_each_model_in_validation(
    train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the raw weights and their average; neither a smaller last batch nor a second validation adds one."""
    monkeypatch.setattr(nn.Module, "compile", without_code_generation.COMPILE)
    torch._dynamo.reset()
    counters.clear()
    run = train_here(*SMALL, "compile=true", "eval_batch_size=2", "data.val_images=5", "log.validate_every=0.5")
    assert len(metrics(run, "val_raw/loss")) == len(metrics(run, "val_ema/loss")) == 2
    assert counters["stats"]["unique_graphs"] == 3 and not counters["graph_break"]
