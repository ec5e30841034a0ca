"""What a metric is: a function of a `Case` to one value per image, and the score of a data set from those."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from evaluate.metrics.case import Case
from evaluate.named import Named

Better = Literal["higher", "lower"]
Needs = Literal["human", "boxes", "objects", "explain"]
"""human maps; object boxes; boxes or masks; an explainer to call again."""


@dataclass(frozen=True)
class Result:
    """What a metric found in one batch."""

    values: Tensor
    """(B,) one value per image, NaN where it is not defined."""
    detail: Tensor
    """What the values were made from: the curve (B, n) of Insertion and Deletion, otherwise mostly the values."""
    settings: dict[str, Any]
    """Every parameter of the metric, to be recorded with its score."""
    better: Better


def _mean(detail: Tensor) -> float:
    return detail.double().nanmean().item()


@dataclass(frozen=True)
class Measure(Named):
    """One metric; `function` takes a `Case` and gives values (B,) or their detail."""

    better: Better
    needs: tuple[Needs, ...] = ()
    per_image: Callable[[Tensor], Tensor] = lambda detail: detail
    """Detail -> (B,)."""
    aggregate: Callable[[Tensor], float] = _mean
    """Values (N,) of all images -> the data set's score."""
    of_detail: Callable[[Tensor, Mapping[str, Any]], float] | None = None
    """For scores that cannot be computed from the values: flattened details (N, n) and the parameters -> the score."""
    has_curve: bool = False
    """Whether `detail` is more than the values: a curve per image."""
    axes: tuple[str, str] | None = None
    """What both axes of a chart of the mean curve say, over equal steps from 0 to 100 %; None: there is no chart."""
    given: ClassVar[frozenset[str]] = frozenset({"case"})

    def data_set_score(self, values: Tensor, detail: Tensor | None, settings: Mapping[str, Any]) -> float:
        """The score of N images from their values (N,) or flattened details (N, n), made with `settings`."""
        if self.of_detail is not None and detail is not None:
            return self.of_detail(detail, {**self.parameters, **settings})
        return self.aggregate(values)

    def __call__(self, case: Case, **parameters: Any) -> Result:
        """Measure one batch."""
        detail = self.function(case, **parameters)
        return Result(self.per_image(detail), detail, {**self.parameters, **parameters}, self.better)
