"""Long runs keep their memory: 8,000 updates of training, 40,000 scenes evaluated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

EVALUATE = """
import sys, threading, time
from pathlib import Path
from evaluate.cli.main import main
from evaluate.data.scenes import ScenesData

ScenesData.__init__.__defaults__ = (40_000, None)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

def watch():
    with open(sys.argv[1], "w") as file:
        while True:
            print(resident(), file=file, flush=True)
            time.sleep(1)

threading.Thread(target=watch, daemon=True).start()
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_eight_thousand_updates_take_no_more_memory_than_two_thousand(tmp_path: Path) -> None:
    small = [
        "recipe=demo", "updates=8000", "global_batch=4", "batch_size=4", "data.image_size=32", "data.eval_size=32",
        "data.train_images=400", "data.val_images=40", "data.workers=0", "threads=1", "compile=false", "publish=false",
        "log.every=100", "log.validate_every=10", "snapshots.every_updates=200", "snapshots.keep_last=2",
    ]  # fmt: skip
    done = _run([sys.executable, "train/main.py", *small, f"run_dir={tmp_path / 'run'}"])
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    peak = {line["update"]: line["speed/memory_gib"] for line in lines if "speed/memory_gib" in line}
    assert sorted(peak) == list(range(100, 8001, 100))
    assert peak[8000] <= 1.03 * peak[2000], peak
    assert len(list((tmp_path / "run" / "snapshots").glob("update_*"))) == 2
    assert len(list((tmp_path / "run").rglob("*"))) < 40


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")
def test_forty_thousand_scenes_take_no_more_memory_than_ten_thousand(tmp_path: Path) -> None:
    sizes, out = tmp_path / "sizes", tmp_path / "out"
    given = ["--ckpt", "checkpoints/demo", "--data", "scenes", "--explainer", "grad_cam", "--workers", "0"]
    done = _run([sys.executable, "-c", EVALUATE, str(sizes), *given, "--batch-size", "32", "--out", str(out)])
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((out / "scores.json").read_text())[0]["n_images"] == 40_000
    resident = [int(line) for line in sizes.read_text().split()]
    quarter = len(resident) // 4
    assert max(resident[3 * quarter :]) <= 1.05 * max(resident[:quarter]), resident[:: max(1, quarter // 5)]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=1500)
