"""Which images a report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.scores.groups import Array, Group, GroupKey

PER_REASON = 3


SAMPLE = 9


@dataclass
class GalleryItem:
    """One image of the gallery."""

    index: int
    """Place in the data set."""
    reason: str
    """Why it is shown, such as `best`, `worst`, `largest gain`."""


def choose_gallery(groups: dict[GroupKey, Group], pairs: Sequence[tuple[str, str]] = ()) -> list[GalleryItem]:
    """Images that show the range: by the first score, and by the gain of the first pair; a sample without scores."""
    (first_key, first), *_ = groups.items()
    _, explainer, protocol = first_key
    scored = np.flatnonzero(~np.isnan(first.spearman)) if protocol else np.array([], int)
    if not len(scored):
        return [GalleryItem(int(index), "sample") for index in first.index[:SAMPLE]]
    order = scored[np.argsort(-first.spearman[scored], kind="stable")]
    middle = max(0, len(order) // 2 - PER_REASON // 2)
    chosen: dict[int, str] = {}
    _add(chosen, "best", first.index[order[:PER_REASON]])
    _add(chosen, "median", first.index[order[middle : middle + PER_REASON]])
    _add(chosen, "worst", first.index[order[-PER_REASON:]])
    for a, b in pairs[:1]:
        before, after = groups.get((a, explainer, protocol)), groups.get((b, explainer, protocol))
        if before is not None and after is not None:
            gain = after.spearman - before.spearman  # of one run: the same images in the same order
            known = np.flatnonzero(~np.isnan(gain))
            by_gain = known[np.argsort(-gain[known], kind="stable")]
            _add(chosen, f"largest gain of {b}", before.index[by_gain[:PER_REASON]])
            _add(chosen, f"largest loss of {b}", before.index[by_gain[::-1][:PER_REASON]])
    return [GalleryItem(index, reason) for index, reason in chosen.items()]


def _add(chosen: dict[int, str], reason: str, indices: Array) -> None:
    for index in indices:
        chosen.setdefault(int(index), reason)
