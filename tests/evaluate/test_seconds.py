"""Seconds per image of each explainer: who is charged for what, and the way into the results."""

import csv
import json

import pyarrow.parquet as pq
import pytest
import torch

from evaluate.cli.main import main
from evaluate.explainers import explain as explanation
from evaluate.explainers.explain import explain
from evaluate.rows import SHARED_PASS
from evaluate.run.parts import PartStore
from tests.evaluate.explainers.conftest import PooledNet


class CountingNet(PooledNet):
    """A clock that a forward pass puts forward by one second."""

    passed = 0.0

    def forward_features(self, x):
        self.passed += 1
        return super().forward_features(x)


@pytest.mark.parametrize("methods", [["grad_cam", "layer_cam", "input_gradient"], ["random", "eigen_cam", "grad_cam"]])
def test_the_shared_pass_is_charged_to_no_method(methods, monkeypatch):
    net = CountingNet().eval()
    monkeypatch.setattr(explanation, "_now", lambda device: net.passed)
    maps = explain(net, torch.randn(2, 3, 32, 32), [0, None], methods)
    assert maps.shared_seconds == 1
    assert maps.seconds == {method: float(method == "input_gradient") for method in methods}


def test_parts_keep_seconds_and_add_them_up(tmp_path):
    store = PartStore(tmp_path, "net", {}, [[0], [1]])
    for chunk in range(2):
        store.write(chunk, [], 5.0, {SHARED_PASS: 0.25, "grad_cam": 1.5 + chunk}, {})
    assert store.seconds() == 10 and store.explainer_seconds() == {SHARED_PASS: 0.5, "grad_cam": 4.0}


def test_seconds_survive_a_resume_and_are_the_same_in_every_result(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("evaluate.run.identity.SLOW_CHUNK", 4)
    explainers = ["grad_cam", "centre", "other_human"]
    arguments = ["--ckpt", str(checkpoint), "--data", "scenes", "--limit", "8", "--workers", "0", "--protocol",
                 "aligned", "--explainer", *explainers, "--metric", "complexity", "--out", str(tmp_path)]  # fmt: skip
    main(arguments)
    next(tmp_path.glob("parts/*/00001.parquet")).unlink()
    kept = pq.read_schema(next(tmp_path.glob("parts/*/00000.parquet"))).metadata[b"explainers"]
    main(arguments)
    assert "1 of 2 parts kept" in capsys.readouterr().out
    parts = [json.loads(pq.read_schema(p).metadata[b"explainers"]) for p in sorted(tmp_path.glob("parts/*/*"))]
    assert parts[0] == json.loads(kept)
    shared, own, centre = (sum(p[name] for p in parts) / 8 for name in (SHARED_PASS, "grad_cam", "centre"))

    scores = {item["explainer"]: item for item in json.loads((tmp_path / "scores.json").read_text())}
    grad_cam = scores["grad_cam"]
    assert shared > 0 and own > 0 and grad_cam["seconds_per_image"] == pytest.approx(shared + own)
    assert grad_cam["seconds_per_image_shared"] == pytest.approx(shared)
    assert scores["centre"]["seconds_per_image"] == pytest.approx(centre)
    assert scores["centre"]["seconds_per_image_shared"] == 0 and scores["other_human"]["seconds_per_image"] is None
    assert "explainer_seconds" not in grad_cam and grad_cam["threads"] == torch.get_num_threads()
    with (tmp_path / "scores.csv").open() as file:
        rows = {row["explainer"]: row for row in csv.DictReader(file)}
    assert float(rows["grad_cam"]["seconds_per_image"]) == grad_cam["seconds_per_image"]
    assert rows["other_human"]["seconds_per_image"] == ""
    shown, rank = f"{grad_cam['seconds_per_image']:.5f}", 1 + (centre < shared + own)
    for report, cell in (
        ("report.html", f"{shown} <small title='rank {rank}'>{rank}</small>"),
        ("report.md", f"{shown} (rank {rank})"),
    ):
        text = (tmp_path / report).read_text()
        assert cell in text and "as if it ran alone (cpu, fp32" in text
