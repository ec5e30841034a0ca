"""ClickMe evaluation from TFRecord to row, against a forward pass alone and against what the study's code does.

The study differentiates the whole network, with its DCLS kernels unfolded, once for each explainer, and ranks with
SciPy image by image. It gets the same decoded batches as ours.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from common.models.zoo import create_model
from evaluate.data.clickme import ClickMeData
from evaluate.data.interface import Batch
from evaluate.data.loader import load_batches
from evaluate.network.compiled import CompiledModel
from evaluate.network.subject import Subject, load_subject
from evaluate.run.measure import measure
from evaluate.run.options import RunOptions
from evaluate.run.processes import default_workers
from tests.benchmarks.bench_step import with_package_layers
from tests.benchmarks.harness import Timing, alternate, device, markdown
from tests.benchmarks.records import write_clickme

TITLE = "ClickMe evaluation, TFRecord to row, Grad-CAM and Threshold-Grad-CAM"
GOAL = (
    "Goal: 0.9 of a forward pass of the same folded model; 15 times the study's way of doing it in float32, 30 times "
    "in bf16 (the study's way in float32). The forward pass is as written; with `--compile` ours is compiled."
)
MODEL = "convnext_t_dcls"


def study_maps(model: nn.Module, images: Tensor, labels: Tensor, threshold: bool) -> Tensor:
    """Grad-CAM or Threshold-Grad-CAM as the study computes them, (B, 224, 224)."""
    features = model.forward_features(images)
    features.retain_grad()
    logits = model.forward_head(features)
    (logits * F.one_hot(labels, logits.shape[1])).sum().backward()
    weighted = features * features.grad.mean((2, 3), keepdim=True)
    if threshold:
        maps = weighted.relu().mean(1)
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        maps = ((maps - low) / (high - low)).clamp(min=0.3)
    else:
        maps = weighted.mean(1).relu()
    return F.interpolate(maps.detach()[:, None], (224, 224), mode="bilinear")[:, 0]


def study_way(model: nn.Module, subject: Subject, data: ClickMeData, batches: list[Batch]) -> list[float]:
    """Spearman of every image and explainer, explainer after explainer."""
    values = []
    for threshold in (False, True):
        for batch in batches:
            images = subject.transform.normalise(batch.pixels.to(device()))
            maps = study_maps(model, images, batch.labels.to(device()), threshold).cpu().numpy()
            human = data.human_maps(batch.human).numpy()
            values += [stats.spearmanr(m.ravel(), h.ravel()).statistic for m, h in zip(maps, human)]
    return values


def run(rounds: int = 3, count: int | None = None, batch: int | None = None) -> str:
    """The table of this benchmark."""
    logging.disable(logging.WARNING)
    gpu = device().type == "cuda"
    count, batch = count or (2048 if gpu else 160), batch or (128 if gpu else 8)
    few = count // 16  # for the study's way, which is slow
    subject = load_subject("untrained", MODEL)
    subject.to(device())
    torch.manual_seed(0)  # the weights of `untrained`
    study = with_package_layers(create_model(MODEL)).eval().to(device())
    with tempfile.TemporaryDirectory() as folder:
        data = ClickMeData(write_clickme(Path(folder), count))
        loaded = list(load_batches(data, subject.transform, range(count), batch, 2))
        first = list(load_batches(data, subject.transform, range(few), min(batch, few), 0))
        compiled = replace(subject, model=CompiledModel(subject.model))

        def forward(bf16: bool) -> Callable[[], object]:
            @torch.no_grad()
            def work() -> None:
                with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
                    for part in inputs:
                        subject.model(part)

            return work

        def ours(what: Subject, bf16: bool) -> Callable[[], object]:
            options = RunOptions(batch_size=batch, workers=default_workers(device()), bf16=bf16, device=device())
            return lambda: list(measure(what, data, range(count), options))

        inputs = [
            subject.transform.normalise(b.pixels.to(device())).contiguous(memory_format=torch.channels_last)
            for b in loaded
        ]
        theirs = study_way(study, subject, data, first)
        rows, *_ = next(measure(subject, data, range(few), RunOptions(batch_size=few, device=device())))
        by_image = {(row["explainer"], row["index"]): row["spearman"] for row in rows}
        mine = [by_image[name, n] for name in ("grad_cam", "threshold_grad_cam") for n in range(few)]
        np.testing.assert_allclose(mine, theirs, atol=5e-3)
        times = alternate(
            {
                "forward fp32": forward(False),
                "ours fp32": ours(subject, False),
                "compiled fp32": ours(compiled, False),
                "forward bf16": forward(True),
                "ours bf16": ours(subject, True),
                "compiled bf16": ours(compiled, True),
                "study fp32": lambda: study_way(study, subject, data, first),
            },
            rounds,
        )
    speed = {name: (few if name.startswith("study") else count) / t.median for name, t in times.items()}
    head = ["", "forward pass img/s", "ours img/s", "study's way img/s", "ours / forward", "ours / study", "s"]
    ways = [("ours", "fp32"), ("compiled", "fp32"), ("ours", "bf16"), ("compiled", "bf16")]
    return markdown(head, [_row(way, precision, times, speed) for way, precision in ways])


def _row(way: str, precision: str, times: dict[str, Timing], speed: dict[str, float]) -> list[str]:
    names = (f"forward {precision}", f"{way} {precision}", "study fp32")
    forward, ours, study = (speed[name] for name in names)
    return [
        f"{MODEL}, {precision}{', --compile' * (way == 'compiled')}",
        *(f"{value:.2f}" for value in (forward, ours, study)),
        f"{ours / forward:.2f}",
        f"{ours / study:.1f}",
        " / ".join(str(times[name]) for name in names),
    ]
