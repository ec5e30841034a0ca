"""The rows of one checkpoint, explainer and protocol as columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[Any]


GroupKey = tuple[str, str | None, str | None]
"""Checkpoint, explainer, protocol; the last two None where there are no human maps."""


@dataclass
class Group:
    """The rows of one checkpoint x explainer x protocol, as columns of N images in order of index."""

    index: Array
    """int64, place in the data set."""
    spearman: Array
    """float64, NaN where a map is constant."""
    degenerate: Array
    """bool."""
    centre_spearman: Array
    """float64, of a centred Gaussian with the same human map; NaN where the human map is constant."""
    label: Array
    """int64."""
    correct: Array
    """bool, top-1."""
    dice: Array
    """float64, overlap of the top 10 % of both maps."""
    iou: Array
    """float64, the same as intersection over union."""
    measures: dict[str, Array] = field(default_factory=dict)
    """float64, further measures by name, NaN where not defined."""
    curves: dict[str, Array] = field(default_factory=dict)
    """(N, n) float64, what such a measure was made from, where it is more than a number."""

    def values(self, protocol: str | None) -> Array:
        """Spearman values that the protocol's mean is taken over, one an image, NaN for those left out.

        `paper` leaves degenerate maps out, `aligned` counts them as 0.
        """
        return np.where(self.degenerate, 0.0, self.spearman) if protocol == "aligned" else self.spearman


_COLUMNS = ("index", "spearman", "degenerate", "centre_spearman", "label", "correct", "dice", "iou")


def collect(tables: Iterable[pa.Table], measures: Sequence[str] = ()) -> dict[GroupKey, Group]:
    """Columns of every checkpoint x explainer x protocol of a table, in the order of their first rows."""
    parts: dict[GroupKey, list[dict[str, Array]]] = {}
    curves = [f"{name} detail" for name in measures]
    names = [*_COLUMNS, *measures, *curves]
    for table in tables:
        names = [name for name in names if name in table.column_names]
        columns = {name: _to_numpy(table.column(name)) for name in names}
        keys = list(zip(*(table.column(name).to_pylist() for name in ("checkpoint", "explainer", "protocol"))))
        codes: dict[GroupKey, list[int]] = {}
        for place, key in enumerate(keys):
            codes.setdefault(key, []).append(place)
        for key, places in codes.items():
            parts.setdefault(key, []).append({name: column[places] for name, column in columns.items()})
    groups = {}
    for key, pieces in parts.items():
        joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in names}
        order = np.argsort(joined["index"], kind="stable")
        ordered = {name: column[order] for name, column in joined.items()}
        groups[key] = Group(
            **{name: ordered[name] for name in _COLUMNS},
            measures={name: ordered[name] for name in measures},
            curves={name: ordered[f"{name} detail"] for name in measures if f"{name} detail" in ordered},
        )
    return groups


def _to_numpy(column: pa.ChunkedArray) -> Array:
    if pa.types.is_list(column.type):
        return np.array(column.to_pylist(), dtype=float)
    if pa.types.is_boolean(column.type):
        return column.fill_null(False).to_numpy().astype(bool)
    if pa.types.is_floating(column.type):
        return column.to_numpy().astype(float)  # null becomes NaN
    return column.to_numpy()
