"""What a report says where there are no human maps, its ranks, and its curves."""

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evaluate.cli.main import main
from evaluate.report.charts import measure_curves
from evaluate.report.tables import metric_table
from tests.evaluate.results import make_metric, make_results, make_score


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """Results on photographs without human maps."""
    out = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for label in range(12):
        path = out / "data" / f"c{label:02d}" / "1.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate"])  # the report quotes it
        main(["--ckpt", str(checkpoint), "--data", "imagefolder", "--data-root", str(out / "data"), "--limit", "3",
              "--workers", "0", "--explainer", "grad_cam", "opti_cam:iterations=2,tolerance=1e-3", "--metric",
              "insertion:step=512", "insertion:step=2048", "average_gain", "--out", str(out)])  # fmt: skip
    return out


def test_without_human_maps_nothing_is_said_of_alignment(folder):
    for name in ("report.html", "report.md"):
        text = re.sub(r"<(style|svg|script).*?</\1>", "", (folder / name).read_text(), flags=re.DOTALL)
        assert "Evaluation without human maps: imagefolder" in text
        assert not re.findall(r"[Aa]lignment|interval|Spearman|protocol|None|constant", text), name


def test_every_measure_with_a_curve_has_its_own_figure(folder):
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {f"insertion_step_{n}-untrained_dcls.{s}" for n in (512, 2048) for s in ("png", "pdf")}
    assert (folder / "report.html").read_text().count("<figure class='chart'") == 2


def test_every_map_can_be_hidden(folder):
    page = (folder / "report.html").read_text()
    boxes = set(re.findall(r"type='checkbox' checked data-explainer='([^']+)'", page))
    assert boxes == {"grad_cam", "opti_cam:iterations=2,tolerance=1e-3"}
    assert set(re.findall(r"<figure data-explainers='([^']+)'>", page)) == boxes


def item(checkpoint, explainer, gain, drop, seconds):
    metrics = {"average_gain": make_metric(gain), "average_drop": make_metric(drop, "lower")}
    return make_score(checkpoint, explainer, measures=metrics, seconds_per_image=seconds)


def test_ranks_stay_within_a_checkpoint_follow_the_direction_and_are_shared_by_what_reads_the_same():
    scores = [item("a", "x", 3.0, 3.0, 0.5), item("a", "y", 1.0, 1.0, None), item("a", "z", 3.00001, None, 0.25)]
    _, head, rows = metric_table(
        make_results([*scores, replace(scores[0], measures={}), item("b", "x", 0.0, 0.0, 9.0)])
    )
    assert head[2:] == [
        "average_gain (higher is better)",
        "average_drop (lower is better)",
        "s / image (lower is better)",
    ]
    assert rows == [
        ["a", "x", "3.0000 (rank 1)", "3.0000 (rank 2)", "0.50000 (rank 2)"],
        ["a", "y", "1.0000 (rank 3)", "1.0000 (rank 1)", "-"],
        ["a", "z", "3.0000 (rank 1)", "-", "0.25000 (rank 1)"],
        ["b", "x", "0.0000 (rank 1)", "0.0000 (rank 1)", "9.00000 (rank 1)"],
    ]


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_curves_of_many_explainers_differ_in_look_and_are_named_best_first(better):
    found = [make_metric(n / 20, better, [0, n]) for n in range(20)]
    scores = [make_score("net", f"e{n}", measures={"m": f}) for n, f in enumerate(found)]
    figure = measure_curves(scores, "m", ("share", "probability"))
    lines = figure.axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20
    names = [text.get_text().split()[1] for text in figure.legends[0].get_texts()]
    expected = [f"e{n}" for n in range(20)]
    assert names == (expected if better == "lower" else expected[::-1])
