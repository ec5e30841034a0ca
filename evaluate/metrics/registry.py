"""Every measure by the name people type, behind one interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from common.errors import UserError, did_you_mean
from evaluate.metrics.alignment import dice, human_energy, iou, spearman
from evaluate.metrics.average_drop import average_drop, average_gain, average_increase
from evaluate.metrics.case import Case
from evaluate.metrics.insertion_deletion import area, deletion, insertion
from evaluate.metrics.localisation import (
    box_accuracy,
    box_accuracy_of,
    localisation_error,
    official_metric,
    pixel_f1,
    saliency_metric,
)
from evaluate.metrics.pointing import energy_pointing, pointing_game, standard_pointing
from evaluate.metrics.road import road
from evaluate.metrics.robustness import coherency, complexity, max_sensitivity
from evaluate.metrics.sanity import cascading_randomisation
from evaluate.named import check_parameters, parse_parameters

Better = Literal["higher", "lower"]
Needs = Literal["human", "boxes", "objects", "explain"]
"""human maps; object boxes; boxes or masks; an explainer to call again."""


@dataclass(frozen=True)
class Result:
    """What a measure found in one batch."""

    values: Tensor
    """(B,) one value an image, NaN where it is not defined."""
    detail: Tensor
    """What the values were made from: the curve (B, n) of Insertion and Deletion, otherwise mostly the values."""
    settings: dict[str, Any]
    """Every parameter of the measure, to be recorded with its score."""
    better: Better


def _mean(detail: Tensor) -> float:
    return detail.double().nanmean().item()


@dataclass(frozen=True)
class Measure:
    """One measure."""

    name: str
    better: Better
    function: Callable[..., Tensor]
    """Of a `Case`, with parameters by keyword; values (B,) or their detail."""
    needs: tuple[Needs, ...] = ()
    per_image: Callable[[Tensor], Tensor] = lambda detail: detail
    """Detail -> (B,)."""
    aggregate: Callable[[Tensor], float] = _mean
    """Values (N,) of all images -> the data set's score."""
    of_detail: Callable[[Tensor, Mapping[str, Any]], float] | None = None
    """Where it cannot be had from the values: flattened details (N, n) and the measure's parameters -> the score."""
    has_curve: bool = False
    """Whether `detail` is more than the values: a curve an image."""
    axes: tuple[str, str] | None = None
    """What both axes of a chart of the mean curve say, over equal steps from 0 to 100 %; None: there is no chart."""

    @property
    def summary(self) -> str:
        """First line of its documentation."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """Its parameters and their defaults."""
        return {n: p.default for n, p in inspect.signature(self.function).parameters.items() if n != "case"}

    def data_set_score(self, values: Tensor, detail: Tensor | None, settings: Mapping[str, Any]) -> float:
        """The score of N images from their values (N,) or flattened details (N, n), made with `settings`."""
        if self.of_detail is not None and detail is not None:
            return self.of_detail(detail, {**self.parameters, **settings})
        return self.aggregate(values)

    def __call__(self, case: Case, **parameters: Any) -> Result:
        """Measure one batch."""
        detail = self.function(case, **parameters)
        return Result(self.per_image(detail), detail, {**self.parameters, **parameters}, self.better)


_REMOVAL = ("pixels (%), the most salient first", "probability")

_ALL = (
    Measure("spearman", "higher", spearman, ("human",)),
    Measure("dice", "higher", dice, ("human",)),
    Measure("iou", "higher", iou, ("human",)),
    Measure("human_energy", "higher", human_energy, ("human",)),
    Measure("average_drop", "lower", average_drop),
    Measure("average_increase", "higher", average_increase),
    Measure("average_gain", "higher", average_gain),
    Measure("insertion", "higher", insertion, per_image=area, has_curve=True, axes=_REMOVAL),
    Measure("deletion", "lower", deletion, per_image=area, has_curve=True, axes=_REMOVAL),
    Measure("pointing_game", "higher", pointing_game, ("objects",)),
    Measure("energy_pointing", "higher", energy_pointing, ("objects",)),
    Measure("official_metric", "lower", official_metric, ("boxes",)),
    Measure("localisation_error", "lower", localisation_error, ("boxes",)),
    Measure("pixel_f1", "higher", pixel_f1, ("objects",)),
    Measure(
        "box_accuracy",
        "higher",
        box_accuracy,
        ("boxes",),
        lambda hits: hits.amax(1).mean(1),
        of_detail=lambda hits, settings: box_accuracy_of(hits.view(len(hits), -1, len(settings["overlaps"]))),
        has_curve=True,
    ),
    Measure("standard_pointing", "higher", standard_pointing, ("objects",)),
    Measure("saliency_metric", "lower", saliency_metric),
    Measure("road", "higher", road),
    Measure("complexity", "lower", complexity),
    Measure("coherency", "higher", coherency, ("explain",)),
    Measure("max_sensitivity", "lower", max_sensitivity, ("explain",)),
    Measure(
        "cascading_randomisation",
        "lower",
        cascading_randomisation,
        ("explain",),
        lambda curve: curve.nanmean(1),
        has_curve=True,
    ),
)

MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ALL}
"""Every measure by the name people type."""


def parse_measure(text: str) -> tuple[Measure, dict[str, Any]]:
    """`NAME` or `NAME:KEY=VALUE,...`, such as `insertion:step=1792` -> measure, parameters.

    Raises:
        UserError: no such measure, or it has no such parameter.
    """
    name, _, rest = text.partition(":")
    if name not in MEASURES:
        raise UserError(f"unknown measure {name!r}; {did_you_mean(name, MEASURES)}")
    measure, parameters = MEASURES[name], parse_parameters(text, rest)
    check_parameters(name, parameters, measure.parameters)
    return measure, parameters


def measure_case(case: Case, measures: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, Result]:
    """Results of several measures for one batch and one explainer, by the names as they were given.

    Raises:
        UserError: unknown measure or parameter, or the data set lacks what a measure needs.
    """
    given = {
        "human": case.human is not None,
        "boxes": case.boxes is not None,
        "objects": case.boxes is not None or case.masks is not None,
        "explain": case.can_explain,
    }
    results = {}
    for text in measures:
        measure, parameters = parse_measure(text)
        if isinstance(measures, Mapping):
            parameters = dict(measures[text])
            check_parameters(measure.name, parameters, measure.parameters)
        for need in measure.needs:
            if not given[need]:
                raise UserError(f"measure {measure.name} needs {need}, which these data do not have")
        results[text] = measure(case, **parameters)
    return results
