"""The two committed demo checkpoints: their cards hold against a fresh evaluation, and what the README says of them."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import spearmanr

from common.checkpoint import read_config
from common.surgery import position_groups
from common.zoo import create_model
from evaluate.cli import main
from evaluate.data import ScenesData
from evaluate.runner import RunOptions, measure
from evaluate.subjects import load_subject

ROOT = Path(__file__).parents[1]
CHECKPOINTS = {name: ROOT / "checkpoints" / name for name in ("demo", "demo_dcls")}


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """A fresh evaluation of both on 1000 unseen scenes."""
    out = tmp_path_factory.mktemp("demo")
    main(["--ckpt", *map(str, CHECKPOINTS.values()), "--data", "scenes", "--out", str(out), "--workers", "0"])
    items = json.loads((out / "scores.json").read_text())
    return {(item["checkpoint"], item["explainer"]): item for item in items} | {"out": out}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_card_holds_against_a_fresh_evaluation(name, scores):
    config = read_config(CHECKPOINTS[name])
    found = scores[name, "grad_cam"]
    assert found["n_images"] == config.metrics["val_images"] == 1000
    # One image may tip between machines.
    assert found["top1"] == pytest.approx(100 * config.metrics["top1"], abs=0.2)
    assert found["top1"] > 90
    card = (CHECKPOINTS[name] / "README.md").read_text()
    assert config.weights_sha256 in card and f"recipe={name}" in card


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_trained_maps_align_clearly_better_than_untrained_and_shuffled_ones(name, scores):
    trained = scores[name, "grad_cam"]
    data = ScenesData(64, 200)
    options = RunOptions(("grad_cam",), workers=0)
    untrained = load_subject("untrained", name)
    rows = [row for batch, *_ in measure(untrained, data, range(200), options) for row in batch]
    values = [row["spearman"] for row in rows if row["spearman"] is not None]
    assert trained["interval"][0] > np.mean(values) + 0.3

    # The human map of the next scene instead of the right one.
    subject = load_subject(str(CHECKPOINTS[name]))
    shuffled = []
    for index in range(0, 60):
        scene, other = data.scenes[index], data.scenes[(index + 1) % 200]
        images = subject.transform.normalise(scene.image[None])
        from evaluate import explain

        saliency = explain(subject.model, images, torch.tensor([scene.label]), "grad_cam")["grad_cam"][0]
        shuffled.append(spearmanr(saliency.numpy().ravel(), other.human_map.numpy().ravel()).statistic)
    assert trained["interval"][0] > np.nanmean(shuffled) + 0.3


def test_positions_of_the_dcls_twin_moved():
    config = read_config(CHECKPOINTS["demo_dcls"])
    assert config.metrics["mean_displacement_px"] > 0.4
    assert (
        position_groups(create_model("demo_dcls"))
        and "mean_displacement_px" not in read_config(CHECKPOINTS["demo"]).metrics
    )


def test_the_readme_shows_the_figures_of_the_committed_checkpoints(scores):
    text = (ROOT / "README.md").read_text()
    for name in CHECKPOINTS:
        row = re.search(rf"^\| `{name}` \|(.*)\|$", text, re.MULTILINE)
        assert row, name
        cells = [cell.strip() for cell in row[1].split("|")]
        assert float(cells[0]) == pytest.approx(scores[name, "grad_cam"]["top1"], abs=0.2)
        assert float(cells[1]) == pytest.approx(scores[name, "grad_cam"]["alignment"], abs=2e-3)
        assert float(cells[2]) == pytest.approx(scores[name, "threshold_grad_cam"]["alignment"], abs=2e-3)


def test_rows_of_the_committed_checkpoints_are_whole(scores):
    table = pq.read_table(scores["out"] / "per_image.parquet")
    assert table.num_rows == 2 * 2 * 1000 and len(set(table.column("image_id").to_pylist())) == 1000
