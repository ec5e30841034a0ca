"""The human map of another image is no score where there is no other image."""

import json

import pytest

from common.data.tfrecord import index_records, iter_records, write_records
from evaluate.cli.main import main


def evaluate(root, out, *more):
    main(["--ckpt", "untrained", "--model", "timm:resnet18", "--data-root", str(root), "--workers", "0", "--explainer",
          "other_human", "grad_cam", "--protocol", "paper", "aligned", "--out", str(out), *more])  # fmt: skip
    return {(s["explainer"], s["protocol"]): s for s in json.loads((out / "scores.json").read_text())}


@pytest.mark.parametrize("unreadable", [0, 1])
def test_a_lone_image_has_no_score_of_another_human_and_that_is_said(clickme_root, tmp_path, unreadable):
    shard = tmp_path / "val-0.tfrecords"
    write_records(shard, list(iter_records(clickme_root / "val-0.tfrecords"))[: 1 + unreadable])
    content = bytearray(shard.read_bytes())
    for offset in index_records(shard).offsets[1:]:
        content[int(offset) + 200] ^= 1
    shard.write_bytes(content)
    scores = evaluate(tmp_path, tmp_path / "out", "--metric", "complexity", "average_drop", "--skip-bad")
    for protocol in ("paper", "aligned"):
        other = scores["other_human", protocol]
        assert [other[name] for name in ("alignment", "mean_spearman", "dice", "iou")] == [None] * 4
        assert other["n_scored"] == other["n_degenerate"] == 0 and other["n_images"] == 1
        assert all(measure["value"] is None for measure in other["measures"].values())
        assert scores["grad_cam", protocol]["alignment"] is not None
    assert "no other image with a human map" in scores["other_human", "paper"]["explainer_notes"]["other_human"]
    for report in ("report.html", "report.md", "scores.csv"):
        assert "no other image with a human map" in (tmp_path / "out" / report).read_text()
