"""The rows of one checkpoint, explainer and protocol as columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluate.rows import ALIGNMENT, detail_column

Array = NDArray[Any]


GroupKey = tuple[str, str | None, str | None]
"""Checkpoint, explainer, protocol; the last two None where there are no human maps."""


@dataclass(kw_only=True)
class Group:
    """The rows of one checkpoint x explainer x protocol, as columns of N images in order of index."""

    index: Array
    """int64, place in the data set."""
    label: Array
    """int64."""
    correct: Array
    """bool, top-1."""
    alignment: dict[str, Array]
    """Every column of `evaluate.rows.ALIGNMENT` by its name: numbers as float64, NaN where not defined, or bool."""
    measures: dict[str, Array] = field(default_factory=dict)
    """float64, further metrics by name, NaN where not defined."""
    curves: dict[str, Array] = field(default_factory=dict)
    """(N, n) float64, the curves of those metrics that have one per image."""

    @property
    def spearman(self) -> Array:
        """float64, NaN where a map is constant."""
        return self.alignment["spearman"]

    @property
    def degenerate(self) -> Array:
        """bool, whether either map is constant."""
        return self.alignment["degenerate"]

    def values(self, protocol: str | None) -> Array:
        """Spearman values that the protocol's mean is taken over, one per image, NaN for those left out.

        `paper` leaves degenerate maps out, `aligned` counts them as 0.
        """
        return np.where(self.degenerate, 0.0, self.spearman) if protocol == "aligned" else self.spearman


_COLUMNS = ("index", "label", "correct")


def collect(tables: Iterable[pa.Table], measures: Sequence[str] = ()) -> dict[GroupKey, Group]:
    """Columns of every checkpoint x explainer x protocol of a table, in the order of their first rows."""
    parts: dict[GroupKey, list[dict[str, Array]]] = {}
    names = [*_COLUMNS, *ALIGNMENT, *measures, *map(detail_column, measures)]
    for table in tables:
        names = [name for name in names if name in table.column_names]
        columns = {name: _to_numpy(table.column(name)) for name in names}
        keys = list(zip(*(table.column(name).to_pylist() for name in ("checkpoint", "explainer", "protocol"))))
        codes: dict[GroupKey, list[int]] = {}
        for place, key in enumerate(keys):
            codes.setdefault(key, []).append(place)
        for key, places in codes.items():
            parts.setdefault(key, []).append({name: column[places] for name, column in columns.items()})
    return {key: _joined(pieces, measures) for key, pieces in parts.items()}


def _joined(pieces: Sequence[dict[str, Array]], measures: Sequence[str]) -> Group:
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    order = np.argsort(joined["index"], kind="stable")
    ordered = {name: column[order] for name, column in joined.items()}
    return Group(
        **{name: ordered[name] for name in _COLUMNS},
        alignment={name: ordered[name] for name in ALIGNMENT},
        measures={name: ordered[name] for name in measures},
        curves={name: ordered[detail_column(name)] for name in measures if detail_column(name) in ordered},
    )


def _to_numpy(column: pa.ChunkedArray) -> Array:
    if pa.types.is_list(column.type):
        return np.array(column.to_pylist(), dtype=float)
    if pa.types.is_boolean(column.type):
        return column.fill_null(False).to_numpy().astype(bool)
    if pa.types.is_floating(column.type):
        return column.to_numpy().astype(float)  # null becomes NaN
    return column.to_numpy()
