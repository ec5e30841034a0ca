"""The two committed demo checkpoints: their cards hold against a fresh evaluation, and what the README says of them."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from common.checkpoint import load_checkpoint, read_config
from common.models.zoo import create_model
from common.surgery import position_groups
from evaluate import explain
from evaluate.cli.main import main
from evaluate.data.scenes import ScenesData
from evaluate.explainers.registry import EXPLAINERS
from evaluate.maps.ranks import spearman
from evaluate.network.subject import load_subject
from evaluate.run.measure import measure
from evaluate.run.options import RunOptions

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
    assert found["top1"] == pytest.approx(config.metrics["top1"], abs=0.2)
    assert found["top1"] > 90
    card = (CHECKPOINTS[name] / "README.md").read_text()
    assert config.weights_sha256 in card and f"recipe={name}" in card


@pytest.fixture(scope="module")
def baselines():
    """Grad-CAM alignment of the untrained network, and of the trained one with the next scene's human map."""
    data, found = ScenesData(64), {}
    options = RunOptions(EXPLAINERS.choose("grad_cam"), workers=0)
    for name, folder in CHECKPOINTS.items():
        rows = [
            row for batch in measure(load_subject("untrained", name), data, range(1000), options) for row in batch.rows
        ]
        untrained = np.mean([row["spearman"] for row in rows if row["spearman"] is not None])
        subject = load_subject(str(folder))
        scenes = [data.scenes[index] for index in range(1000)]
        images = subject.transform.normalise(torch.stack([scene.image for scene in scenes]))
        labels = torch.tensor([scene.label for scene in scenes])
        saliency = explain(subject.model, images, labels, "grad_cam")["grad_cam"].flatten(1)
        human = torch.stack([scene.human_map for scene in scenes]).float().flatten(1)
        found[name] = untrained, spearman(saliency, human.roll(-1, 0)).nanmean().item()
    return found


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_trained_maps_align_clearly_better_than_untrained_and_shuffled_ones(name, scores, baselines):
    assert scores[name, "grad_cam"]["interval"][0] > max(baselines[name]) + 0.3


def test_positions_of_the_dcls_twin_moved():
    model, config = load_checkpoint(CHECKPOINTS["demo_dcls"])
    torch.manual_seed(config.recipe["seed"])
    fresh = create_model("demo_dcls")
    moved = [
        torch.linalg.vector_norm(new.positions - old.positions, dim=0).flatten()
        for new, old in zip(position_groups(model), position_groups(fresh), strict=True)
    ]
    mean = torch.cat(moved).mean().item()
    assert mean > 0.4 and mean == pytest.approx(config.metrics["mean_displacement_px"], rel=1e-3)
    assert "mean_displacement_px" not in read_config(CHECKPOINTS["demo"]).metrics


def test_the_readme_shows_the_figures_of_the_committed_checkpoints(scores, baselines):
    text = (ROOT / "README.md").read_text()
    for name in CHECKPOINTS:
        row = re.search(rf"^\| `{name}` \|(.*)\|$", text, re.MULTILINE)
        assert row, name
        cells = [float(cell) for cell in row[1].split("|")]
        assert cells[0] == pytest.approx(scores[name, "grad_cam"]["top1"], abs=0.2)
        assert cells[1] == pytest.approx(scores[name, "grad_cam"]["alignment"], abs=2e-3)
        assert cells[2] == pytest.approx(scores[name, "threshold_grad_cam"]["alignment"], abs=2e-3)
        assert cells[3:] == pytest.approx(baselines[name], abs=2e-3)


def test_rows_of_the_committed_checkpoints_are_whole(scores):
    table = pq.read_table(scores["out"] / "per_image.parquet")
    assert table.num_rows == 2 * 2 * 1000 and len(set(table.column("image_id").to_pylist())) == 1000
