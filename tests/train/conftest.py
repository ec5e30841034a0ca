"""Running the trainer in tests: in this process, or through the real launchers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from PIL import Image

from train.session import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def train_here(tmp_path: Path) -> Callable[..., Path]:
    """Run the trainer in this process; returns the run's folder."""

    def run(*arguments: str, run_dir: str = "run") -> Path:
        folder = tmp_path / run_dir
        threads = torch.get_num_threads()
        AcceleratorState._reset_state(True)
        PartialState._reset_state()
        try:
            given = [f"run_dir={folder}", f"checkpoints_dir={tmp_path}/checkpoints", "log.tensorboard=false"]
            assert main([*arguments, *(g for g in given if g.split("=")[0] not in " ".join(arguments))]) == 0
        finally:
            torch.set_num_threads(threads)
        return folder

    return run


def launch(
    arguments: Sequence[str], processes: int = 1, launcher: Sequence[str] | None = None, wait: bool = True
) -> "subprocess.Popen[str]":
    """Start `train/main.py` as people do, with one thread for each process."""
    if launcher is None:
        launcher = [sys.executable]
        if processes > 1:
            launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
            launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    started = subprocess.Popen(
        [*launcher, str(ROOT / "train" / "main.py"), *arguments],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if wait:
        started.wait(timeout=300)
    return started


def metrics(run: Path, name: str) -> dict[int, float]:
    """A figure of a run by update."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["update"]: line[name] for line in lines if name in line}


def make_photographs(root: Path, classes: Sequence[str] = ("cat", "dog", "fox"), each: int = 8) -> Path:
    """Class folders of random JPEG pictures."""
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = generator.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.jpg")
    return root
