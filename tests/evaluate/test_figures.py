"""What the figures of a report say."""

import pytest

from evaluate.report.charts import accuracy_scatter, bar_chart, measure_curves

NOTE = "reconstruction: not verified against the paper"


def score(explainer, value, better="higher"):
    found = {"insertion": {"value": value, "better": better, "curve": [0.0, 0.5, value]}}
    return {"checkpoint": "a", "model": "a", "explainer": explainer, "protocol": "paper", "alignment": 0.5,
            "interval": [0.4, 0.6], "top1": 50.0, "ceiling": None, "measures": found}  # fmt: skip


@pytest.mark.parametrize("draw", [bar_chart, accuracy_scatter])
@pytest.mark.parametrize(("explainer", "marked"), [("conceptor_cam:aperture=2", True), ("grad_cam", False)])
def test_an_explainer_that_is_not_verified_is_marked_in_the_title(draw, explainer, marked):
    title = draw([score(explainer, 0.5)]).axes[0].get_title().replace("\n", " ")
    assert title == f"{explainer}{f' ({NOTE})' * marked}, protocol paper"


@pytest.mark.parametrize(("better", "order"), [("higher", [2, 0, 1]), ("lower", [1, 0, 2])])
def test_curves_are_named_best_first_and_marked_where_not_verified(better, order):
    values = {"grad_cam": 0.5, "conceptor_cam": 0.2, "other_human": 0.8}
    figure = measure_curves([score(name, value, better) for name, value in values.items()], "insertion")
    told = [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]
    names = ["0.500  grad_cam", f"0.200  conceptor_cam ({NOTE})", "0.800  other_human"]
    assert told == [names[n] for n in order]
