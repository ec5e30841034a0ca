"""Whole rows against a slow, independent computation of the published evaluation, and across ways of computing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from common.checkpoint import load_checkpoint
from common.data.clickme import ClickMe, blur_human_map, paper_image
from common.dcls import DclsConv2d
from common.models.zoo import create_model
from evaluate.data.clickme import ClickMeData
from evaluate.data.scenes import ScenesData
from evaluate.explainers.registry import EXPLAINERS
from evaluate.metrics.registry import MEASURES
from evaluate.network.subject import Subject, load_subject
from evaluate.run.measure import measure
from evaluate.run.options import RunOptions

BOTH = RunOptions(protocols=("paper", "aligned"), workers=0, batch_size=4)


def all_rows(subject, data, indices, options=BOTH):
    rows = [row for batch, *_ in measure(subject, data, indices, options) for row in batch]
    return {(r["image_id"], r["explainer"], r["protocol"]): r for r in rows}


def slow_rows(model, pictures, maps, labels, transform):
    """The published evaluation, one image at a time: the whole unfolded network is differentiated, SciPy ranks."""
    out = []
    for pixels, human, label in zip(pictures, maps, labels):
        x = transform.normalise(transform.geometry()(Image.fromarray(pixels))[None])
        activations = model.forward_features(x)
        activations.retain_grad()
        model.forward_head(activations)[0, label].backward()
        weights = activations.grad.mean((2, 3), keepdim=True)
        weighted = (weights * activations).detach()[0]
        plain = weighted.mean(0).relu()
        floor = weighted.relu().mean(0)
        floor = ((floor - floor.min()) / (floor.max() - floor.min())).clamp(min=0.3)
        for name, low in (("grad_cam", plain), ("threshold_grad_cam", floor)):
            size = human.shape[-1]
            high = torch.nn.functional.interpolate(low[None, None], (size, size), mode="bilinear")[0, 0]
            value = spearmanr(high.numpy().ravel(), human.ravel()).statistic if human.std() > 0 else math.nan
            out.append((name, value))
    return out


def test_rows_equal_the_published_evaluation_on_scenes(checkpoint):
    model, config = load_checkpoint(checkpoint)
    assert any(isinstance(m, DclsConv2d) for m in model.modules())
    data = ScenesData(64, 6)
    scenes = [data.scenes[i] for i in range(6)]
    expected = slow_rows(
        model,
        [s.image.permute(1, 2, 0).numpy() for s in scenes],
        [s.human_map.numpy() for s in scenes],
        [s.label for s in scenes],
        config.transform,
    )
    rows = all_rows(load_subject(str(checkpoint)), data, range(6))
    found = [(e, rows[f"val/{i:06d}", e, "paper"]["spearman"]) for i in range(6) for e in BOTH.explainers]
    for (name, value), (found_name, found_value) in zip(expected, found):
        assert name == found_name and found_value == pytest.approx(value, abs=2e-3)


def test_rows_equal_the_published_evaluation_on_clickme(clickme_root):
    torch.manual_seed(0)
    name = "timm:resnet18"
    subject = load_subject("untrained", name)
    torch.manual_seed(0)
    model = create_model(name).eval()
    records = list(ClickMe(clickme_root))
    images = torch.stack([torch.from_numpy(r.image) for r in records])
    heatmaps = torch.stack([torch.from_numpy(r.heatmap) for r in records])
    expected = slow_rows(
        model,
        paper_image(images).permute(0, 2, 3, 1).numpy(),
        blur_human_map(heatmaps).numpy(),
        [r.label for r in records],
        subject.transform,
    )
    rows = all_rows(subject, ClickMeData(clickme_root), range(7))
    found = [rows[r.image_id, e, "paper"]["spearman"] for r in records for e in BOTH.explainers]
    for (_, value), found_value in zip(expected, found):
        if math.isnan(value):
            assert found_value is None
        else:
            assert found_value == pytest.approx(value, abs=2e-3)
    assert rows["val-1/00002", "grad_cam", "aligned"]["degenerate"]


def test_rows_do_not_depend_on_batches_workers_or_subset(checkpoint):
    data = ScenesData(64, 12)
    subject = load_subject(str(checkpoint))
    one = all_rows(subject, data, range(12), RunOptions(workers=0, batch_size=12))
    other = all_rows(subject, data, range(0, 12, 2), RunOptions(workers=1, batch_size=5))
    assert len(other) == 12 and set(other) < set(one)
    for key, row in other.items():
        assert row["spearman"] == pytest.approx(one[key]["spearman"], abs=2e-3)
        assert row["label"] == one[key]["label"] and row["predicted"] == one[key]["predicted"]


def test_folding_changes_rows_by_less_than_two_thousandths(checkpoint):
    data = ScenesData(64, 24)
    folded = load_subject(str(checkpoint))
    model, config = load_checkpoint(checkpoint)
    unfolded = Subject(
        folded.name, model.requires_grad_(False), config.model, config.transform, config.num_classes, "", "", 0
    )
    a, b = all_rows(folded, data, range(24)), all_rows(unfolded, data, range(24))
    differences = np.array([a[key]["spearman"] - b[key]["spearman"] for key in a])
    assert np.abs(differences).max() < 2e-3 and abs(differences.mean()) < 2e-4


def test_a_centred_human_map_has_a_high_centre_score(checkpoint):
    rows = all_rows(load_subject(str(checkpoint)), ScenesData(64, 12), range(12)).values()
    data = ScenesData(64, 12)
    size = 64
    line = np.arange(size) - (size - 1) / 2
    centre = -(line[:, None] ** 2 + line**2)
    for row in rows:
        human = data.scenes[row["index"]].human_map.numpy()
        assert row["centre_spearman"] == pytest.approx(spearmanr(centre.ravel(), human.ravel()).statistic, abs=1e-6)


def test_the_predicted_class_is_explained_where_that_is_asked(checkpoint):
    data, subject = ScenesData(64, 30), load_subject(str(checkpoint))
    options = replace(BOTH, measures=MEASURES.choose(["average_drop", "max_sensitivity:samples=1"]))
    by_label, by_prediction = (
        all_rows(subject, data, range(30), replace(options, target=target)) for target in ("label", "predicted")
    )
    assert {row["correct"] for row in by_label.values()} == {False, True}
    for key, row in by_label.items():
        for column in ("spearman", "average_drop", "max_sensitivity:samples=1"):
            same = row[column] == pytest.approx(by_prediction[key][column], nan_ok=True)
            assert same == row["correct"], (key, column)


def test_bf16_features_change_rows_a_little_only(checkpoint):
    data = ScenesData(64, 24)
    subject = load_subject(str(checkpoint))
    full, half = (all_rows(subject, data, range(24), replace(BOTH, bf16=b)) for b in (False, True))
    differences = np.array([full[key]["spearman"] - half[key]["spearman"] for key in full])
    assert 0 < np.abs(differences).mean() < 0.1


def test_baselines_to_read_scores_against(checkpoint):
    data = ScenesData(64, 8)
    options = RunOptions(EXPLAINERS.choose(["other_human", "centre"]), workers=0, batch_size=3)
    rows = all_rows(load_subject(str(checkpoint)), data, range(8), options)
    for index in range(8):
        human, other = data.scenes[index].human_map, data.scenes[(index + 1) % 8].human_map
        expected = spearmanr(other.numpy().ravel(), human.numpy().ravel()).statistic
        assert rows[f"val/{index:06d}", "other_human", "paper"]["spearman"] == pytest.approx(expected, abs=1e-6)
        centre = rows[f"val/{index:06d}", "centre", "paper"]
        assert centre["spearman"] == pytest.approx(centre["centre_spearman"], abs=0.02)
