"""Running the trainer in tests: in this process, or through the real launchers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from PIL import Image

from train.run import main
from train.runs.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
MARK = "DCLS_ALIGN_TEST"
"""Variable of the environment by which a test knows the processes it started, and theirs."""


@pytest.fixture
def train_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Run the trainer in this process, on the CPU like `launch`; returns the run's folder."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

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


class Launched(subprocess.Popen[bytes]):
    """A trainer or its launcher, with what it and its children write."""

    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Start `train/main.py` as people do, with one thread for each process; nothing of it outlives the test."""
    logs: list[Path] = []

    def start(
        arguments: Sequence[str], processes: int = 1, launcher: Sequence[str] | None = None, wait: bool = True
    ) -> Launched:
        if launcher is None:
            launcher = [sys.executable]
            if processes > 1:
                launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
                launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        logs.append(tmp_path / f"launched_{len(logs)}.log")
        with logs[-1].open("w") as file:
            started = Launched(
                [*launcher, str(ROOT / "train" / "main.py"), *arguments],
                cwd=ROOT,
                env={**env, MARK: str(tmp_path)},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        started.log = logs[-1]
        if wait:
            started.wait(timeout=300)
        return started

    yield start
    # By the environment and not by parents or groups: trainers outlive launchers and have sessions of their own.
    while left := _marked(f"{MARK}={tmp_path}"):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    for log in logs:
        print(f"--- end of {log}\n{log.read_text()[-3000:]}")  # pytest shows it where the test failed


def _marked(variable: str) -> list[int]:
    """Processes with this variable, `NAME=value`, in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if variable.encode() in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
    return found


def children(pid: int) -> list[int]:
    """Process ids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    """Whether a process is there and not merely waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def metrics(run: Path, name: str) -> dict[int, float]:
    """A figure of a run by update."""
    return {line["update"]: line[name] for line in RunFolder(run).read_metrics() if name in line}


def make_photographs(root: Path, classes: Sequence[str] = ("cat", "dog", "fox"), each: int = 8) -> Path:
    """Class folders of random JPEG pictures."""
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = generator.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.jpg")
    return root
