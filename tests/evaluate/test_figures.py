"""What the figures of a report say."""

import pytest

from evaluate.metrics.registry import MEASURES
from evaluate.report.charts import accuracy_scatter, bar_chart, figure_files, measure_curves
from tests.evaluate.results import make_metric, make_score

AXES = ("share", "probability")
NOTE = "reconstruction: not verified against the paper"


def score(explainer, value, better="higher"):
    found = {"insertion": make_metric(value, better, [0.0, 0.5, value])}
    return make_score("a", explainer, alignment=0.5, interval=[0.4, 0.6], measures=found)


@pytest.mark.parametrize("draw", [bar_chart, accuracy_scatter])
@pytest.mark.parametrize(("explainer", "marked"), [("conceptor_cam:aperture=2", True), ("grad_cam", False)])
def test_an_explainer_that_is_not_verified_is_marked_in_the_title(draw, explainer, marked):
    title = draw([score(explainer, 0.5)]).axes[0].get_title().replace("\n", " ")
    assert title == f"{explainer}{f' ({NOTE})' * marked}, protocol paper"


@pytest.mark.parametrize(("better", "order"), [("higher", [2, 0, 1]), ("lower", [1, 0, 2])])
def test_curves_are_named_best_first_and_marked_where_not_verified(better, order):
    values = {"grad_cam": 0.5, "conceptor_cam": 0.2, "other_human": 0.8}
    figure = measure_curves([score(name, value, better) for name, value in values.items()], "insertion", AXES)
    told = [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]
    names = ["0.500  grad_cam", f"0.200  conceptor_cam ({NOTE})", "0.800  other_human"]
    assert told == [names[n] for n in order]


def test_a_metric_has_a_chart_where_the_registry_says_what_its_axes_are():
    axes = {name: metric.axes for name, metric in MEASURES.items() if metric.axes}
    assert axes == dict.fromkeys(("insertion", "deletion"), ("pixels (%), the most salient first", "probability"))
    assert figure_files([], [], ["a"], ["box_accuracy", "deletion:step=9"]) == [
        f"deletion_step_9-a.{s}" for s in ("png", "pdf")
    ]


def test_both_axes_of_curves_say_what_they_are_given():
    (axes,) = measure_curves([score("grad_cam", 0.5)], "insertion", ("this way", "and up")).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("this way", "and up")
