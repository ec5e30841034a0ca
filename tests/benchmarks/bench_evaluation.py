"""What an evaluation is made of: rank correlation against SciPy, reading images, growth with the data, processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats

from evaluate.data.clickme import ClickMeData
from evaluate.data.loader import load_batches
from evaluate.maps.ranks import average_ranks, spearman_from_ranks
from evaluate.network.subject import load_subject
from tests.benchmarks.harness import alternate, device, markdown
from tests.benchmarks.records import write_clickme

TITLE = "Parts of an evaluation"
GOAL = "Goal: ranks faster than SciPy's, reading no slower than the model, constant memory and linear time."
READER = "convnext_t_dcls"  # whose transform and appetite are taken
MODEL = "timm:mobilenetv3_small_050"  # a fast one, so that all else weighs


def ranks(rounds: int, maps: int = 32) -> list[list[str]]:
    """Spearman of two explainers' maps with one set of human maps, 224 px."""
    torch.manual_seed(0)
    low = torch.randn(2, maps, 7, 7, device=device())
    saliency = F.interpolate(low, (224, 224), mode="bilinear").flatten(2)
    human = F.interpolate(torch.rand(1, maps, 64, 64, device=device()), (224, 224), mode="bilinear")[0].flatten(1)
    on_cpu, human_on_cpu = saliency.cpu().numpy(), human.cpu().numpy()

    def ours() -> np.ndarray:
        reference = average_ranks(human)
        return torch.stack([spearman_from_ranks(average_ranks(s), reference) for s in saliency]).cpu().numpy()

    def scipy() -> np.ndarray:
        return np.array([[stats.spearmanr(a, b).statistic for a, b in zip(s, human_on_cpu)] for s in on_cpu])

    np.testing.assert_allclose(ours(), scipy(), atol=1e-9)
    times = alternate({"ours": ours, "scipy": scipy}, rounds)
    ratio = times["scipy"].median / times["ours"].median
    return [
        [f"Spearman, {maps} images, 2 explainers", f"SciPy {times['scipy']}", f"ours {times['ours']}", f"{ratio:.1f}"]
    ]


def reading(rounds: int, folder: Path, count: int = 256, batch: int = 32) -> list[list[str]]:
    """Reading and decoding against a forward pass of the model they feed."""
    subject = load_subject("untrained", READER)
    subject.to(device())
    data = ClickMeData(write_clickme(folder, count))
    first = next(load_batches(data, subject.transform, range(batch), batch, 0))
    images = subject.transform.normalise(first.pixels.to(device())).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward() -> None:
        subject.model(images)

    def read(workers: int) -> None:
        for _ in load_batches(data, subject.transform, range(count), batch, workers):
            pass

    times = alternate({"forward": forward, "here": lambda: read(0), "2 workers": lambda: read(2)}, rounds)
    appetite = batch / times["forward"].median
    return [
        [
            f"reading ClickMe, {where}",
            f"{READER} forward {appetite:.0f} img/s",
            f"reading {count / times[where].median:.0f} img/s",
            f"{count / times[where].median / appetite:.1f}",
        ]
        for where in ("here", "2 workers")
    ]


def command(
    records: Path, out: Path, *words: str, launcher: tuple[str, ...] = (), threads: int | None = None
) -> tuple[float, float]:
    """Seconds of a whole `python -m evaluate`, and MiB that its main process took at most."""
    arguments = ["--ckpt", "untrained", "--data-root", str(records), "--out", str(out), *words]
    environment = {**os.environ} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *launcher, "-m", "evaluate", *arguments],
        env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"python -m evaluate {' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def growth(folder: Path, unit: int = 1024) -> list[list[str]]:
    """Whole commands on 1, 4 and 16 times the records."""
    found = []
    for times in (1, 4, 16):
        records = folder / f"growth-{times}"
        records.mkdir()
        write_clickme(records, unit * times)
        found.append((unit * times, *command(records, folder / f"out-{times}", "--model", MODEL)))
    first = found[0]
    return [
        [f"{MODEL}, {n} records", f"{s:.1f} s", f"peak {peak:.0f} MiB", f"{s / first[1]:.2f} x time of {first[0]}"]
        for n, s, peak in found
    ]


def processes(folder: Path, count: int = 256) -> list[list[str]]:
    """One process with all threads against two with half of them, whole commands; on the CPU: a GPU serves one."""
    records = folder / "processes"
    records.mkdir()
    write_clickme(records, count)
    half = max(1, torch.get_num_threads() // 2)
    two = ("-m", "torch.distributed.run", "--nproc_per_node", "2")
    words = ("--model", "resnet50", "--device", "cpu")
    one_s, _ = command(records, folder / "one", *words)
    two_s, _ = command(records, folder / "two", *words, launcher=two, threads=half)
    return [
        [f"resnet50, {count} records", f"1 process {one_s:.1f} s", f"2 processes {two_s:.1f} s", f"{one_s / two_s:.2f}"]
    ]


def run(rounds: int = 5, unit: int = 1024, count: int = 256) -> str:
    """The table of this benchmark."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "reading").mkdir()
        rows = [
            *ranks(rounds),
            *reading(rounds, folder / "reading", count),
            *growth(folder, unit),
            *processes(folder, count),
        ]
    return markdown(["what", "peer (ms where no unit)", "ours", "ratio"], rows)
