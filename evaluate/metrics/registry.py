"""Every metric by the name people type. Another one is a file here with its `ENTRIES`, and a line below."""

from __future__ import annotations

from common.errors import UserError
from evaluate.metrics.case import Case
from evaluate.metrics.measure import Measure, Result
from evaluate.named import Asked, Registry, entries_of

_FILES = (
    "alignment",
    "average_drop",
    "insertion_deletion",
    "pointing",
    "localisation",
    "road",
    "robustness",
    "sanity",
)

MEASURES = Registry("metric", entries_of("evaluate.metrics", _FILES, Measure))
"""Every metric by the name people type."""


def measure_case(case: Case, measures: Asked[Measure]) -> dict[str, Result]:
    """Results of several metrics for one batch and one explainer, by the names as they were given.

    Raises:
        UserError: unknown metric or parameter, or the data set lacks what a metric needs.
    """
    present = {
        "human": case.human is not None,
        "boxes": case.boxes is not None,
        "objects": case.boxes is not None or case.masks is not None,
        "explain": case.can_explain,
    }
    results = {}
    for label, chosen in MEASURES.choose(measures).items():
        for need in chosen.entry.needs:
            if not present[need]:
                raise UserError(f"metric {chosen.entry.name} needs {need}, which these data do not have")
        results[label] = chosen.entry(case, **chosen.parameters)
    return results
