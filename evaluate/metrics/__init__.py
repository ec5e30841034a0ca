"""Metrics of saliency maps: a module per family, each metric found by name, per-image values kept.

Defaults follow the authors' code where there is one; where they do not, the docstring says how far apart the two are.
"""

from evaluate.maps.boxes import boxes_in_view
from evaluate.metrics.case import Case
from evaluate.metrics.measure import Measure, Result
from evaluate.metrics.registry import MEASURES, measure_case

__all__ = [
    "MEASURES",
    "Case",
    "Measure",
    "Result",
    "boxes_in_view",
    "measure_case",
]
