"""From per-image rows to scores: the mean with a bootstrap interval, counts, accuracy on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
RESAMPLES = 10_000
CONFIDENCE = 0.95


def bootstrap_means(
    values: NDArray[np.float64], seed: int, resamples: int = RESAMPLES, chunk_values: int = 4_000_000
) -> NDArray[np.float64]:
    """Means of resamples drawn with replacement (the nonparametric bootstrap, Efron 1979).

    Args:
        values: (N,).
        seed: of the draws; one seed and N always draw the same images, so paired differences stay paired.
        resamples: how many.
        chunk_values: values drawn at a time, which bounds the memory.

    Returns:
        (resamples,) float64.
    """
    generator = np.random.default_rng(seed)
    count = len(values)
    step = max(1, chunk_values // max(count, 1))
    means = [
        values[generator.integers(0, count, (min(step, resamples - done), count))].mean(1)
        for done in range(0, resamples, step)
    ]
    return np.concatenate(means)


def interval(values: NDArray[np.float64], seed: int, resamples: int = RESAMPLES) -> tuple[float, float] | None:
    """Percentile bootstrap interval (95 %) of the mean of (N,) values; None for fewer than two."""
    if len(values) < 2:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(bootstrap_means(values, seed, resamples), [tail, 1 - tail])
    return float(low), float(high)


def scored_values(rows: Sequence[Row]) -> NDArray[np.float64]:
    """The Spearman values that a protocol's mean is taken over: `paper` leaves degenerate maps out, `aligned`
    counts them as 0."""
    return np.array(
        [row["spearman"] or 0.0 for row in rows if row["protocol"] == "aligned" or not row["degenerate"]], dtype=float
    )


def score(rows: Sequence[Row], ceiling: float | None, seed: int) -> dict[str, Any]:
    """One score from the rows of one checkpoint x explainer x protocol.

    Args:
        rows: one an image; without `spearman` when the data set has no human maps.
        ceiling: mean Spearman between people; divides mean and interval. None: not divided.
        seed: of the bootstrap.

    Returns:
        `alignment` (mean Spearman / ceiling), `interval` (95 %, of `alignment`), `mean_spearman`, `ceiling`,
        `top1` (%), `n_images`, `n_scored`, `n_degenerate`. Figures that do not exist are None.
    """
    out: dict[str, Any] = {"n_images": len(rows), "top1": 100 * float(np.mean([row["correct"] for row in rows]))}
    if not rows or "spearman" not in rows[0]:
        return {**out, "alignment": None, "interval": None, "mean_spearman": None, "ceiling": None}
    values = scored_values(rows)
    n_degenerate = sum(row["degenerate"] for row in rows)
    mean = float(values.mean()) if len(values) else None
    between = interval(values, seed)
    unit = ceiling or 1.0
    return {
        **out,
        "alignment": None if mean is None else mean / unit,
        "interval": None if between is None else [between[0] / unit, between[1] / unit],
        "mean_spearman": mean,
        "ceiling": ceiling,
        "n_scored": len(values),
        "n_degenerate": int(n_degenerate),
    }
