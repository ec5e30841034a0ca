"""Alignment metrics stand in one table, from which files and tables of a run follow."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from common.errors import UserError
from evaluate.cli.main import main
from evaluate.data.scenes import ScenesData
from evaluate.rows import ALIGNMENT, AlignmentMetric, table_schema
from evaluate.run.alignment import ALIGNMENT_FUNCTIONS


def pearson(pair):
    both = torch.stack([pair.saliency.values, pair.human.values]).double()
    both = both - both.mean(2, keepdim=True)
    return (both[0] * both[1]).sum(1) / both.norm(dim=2).prod(0)


def test_every_alignment_metric_has_a_function():
    assert list(ALIGNMENT) == list(ALIGNMENT_FUNCTIONS)


def test_an_alignment_metric_is_one_entry_and_its_function(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ALIGNMENT, "cc", AlignmentMetric(better="higher", heading="CC"))
    monkeypatch.setitem(ALIGNMENT_FUNCTIONS, "cc", pearson)
    main(["--ckpt", str(checkpoint), "--data", "scenes", "--limit", "4", "--workers", "0", "--explainer", "other_human",
          "--out", str(tmp_path)])  # fmt: skip
    rows = pq.read_table(tmp_path / "per_image.parquet").to_pylist()
    scenes = ScenesData(64).scenes
    for row in rows:
        human, other = (scenes[(row["index"] + step) % len(scenes)].human_map.numpy().ravel() for step in (0, 1))
        assert row["cc"] == pytest.approx(np.corrcoef(human, other)[0, 1], abs=1e-5)
    mean = np.mean([row["cc"] for row in rows])
    (score,) = json.loads((tmp_path / "scores.json").read_text())
    assert score["cc"] == pytest.approx(mean)
    (line,) = csv.DictReader((tmp_path / "scores.csv").read_text().splitlines())
    assert float(line["cc"]) == score["cc"]
    for text in (capsys.readouterr().out, (tmp_path / "report.md").read_text()):
        assert "CC" in text and f"{mean:.4f}" in text


def test_a_column_of_alignment_is_no_further_metric(checkpoint):
    assert set(ALIGNMENT) < set(table_schema().names)
    with pytest.raises(UserError, match="--metric dice: rows with human maps have it already"):
        main(["--ckpt", str(checkpoint), "--data", "scenes", "--metric", "dice"])
