"""Means with bootstrap intervals, and paired comparisons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import stats

from evaluate.metrics.registry import MEASURES
from evaluate.rows import Figures, Gain, MetricScore, averaged_metrics
from evaluate.scores.groups import Array, Group

RESAMPLES = 10_000


CONFIDENCE = 0.95


_CHUNK_VALUES = 4_000_000


def bootstrap_means(values: Array, seed: int, resamples: int = RESAMPLES) -> Array:
    """Means of resamples drawn with replacement (the nonparametric bootstrap, Efron 1979).

    Args:
        values: (N,) float64.
        seed: of the draws; one seed and N always draw the same images.
        resamples: how many.

    Returns:
        (resamples,) float64. The memory does not grow with N times `resamples`.
    """
    generator = np.random.default_rng(seed)
    count = len(values)
    step = max(1, _CHUNK_VALUES // max(count, 1))
    means = [
        values[generator.integers(0, count, (min(step, resamples - done), count))].mean(1)
        for done in range(0, resamples, step)
    ]
    return np.concatenate(means)


def interval(values: Array, seed: int, resamples: int = RESAMPLES) -> tuple[float, float] | None:
    """Percentile bootstrap interval (95 %) of the mean of (N,) values; None for fewer than two."""
    if len(values) < 2:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(bootstrap_means(values, seed, resamples), [tail, 1 - tail])
    return float(low), float(high)


def score(group: Group, protocol: str | None, ceiling: float | None, seed: int) -> Figures:
    """The figures of the rows of one checkpoint x explainer x protocol.

    Args:
        group: the rows.
        protocol: None where the data set has no human maps.
        ceiling: mean Spearman between people; divides mean and interval. None: not divided.
        seed: of the bootstrap.
    """
    out = Figures(
        n_images=len(group.index),
        top1=100 * float(group.correct.mean()),
        measures={name: _metric_score(name, group) for name in group.measures},
    )
    if protocol is None:
        constant = int(group.degenerate.sum()) if group.measures else None  # else nothing was explained
        return replace(out, n_degenerate=constant)
    values = group.values(protocol)
    kept = ~np.isnan(values)
    unit = ceiling or 1.0
    mean = _mean(values[kept])
    classes = [values[kept & (group.label == label)] for label in np.unique(group.label[kept])]
    return replace(
        out,
        alignment=_divided(mean, unit),
        interval=_span(interval(values[kept], seed), unit),
        mean_spearman=mean,
        per_class_mean=_divided(_mean(np.array([members.mean() for members in classes])), unit),
        centre_bias=_divided(_mean_of_defined(group.alignment["centre_spearman"]), unit),
        means={name: _mean_of_defined(group.alignment[name]) for name in averaged_metrics()},
        ceiling=ceiling,
        n_scored=int(kept.sum()),
        n_degenerate=int(group.degenerate.sum()),
    )


def _metric_score(name: str, group: Group) -> MetricScore:
    chosen = MEASURES.find(name)
    measure, settings = chosen.entry, chosen.settings
    values = group.measures[name]
    defined = int((~np.isnan(values)).sum())
    curve = group.curves.get(name)
    value = None
    if defined:
        detail = None if curve is None else torch.from_numpy(curve)
        value = measure.data_set_score(torch.from_numpy(values), detail, settings)
    return MetricScore(
        value=value,
        better=measure.better,
        settings=settings,
        defined=defined,
        curve=None if curve is None or not defined else [_mean_of_defined(column) for column in curve.T],
    )


def _mean_of_defined(values: Array) -> float | None:
    return _mean(values[~np.isnan(values)])


def compare(first: Group, second: Group, protocol: str, ceiling: float | None, seed: int) -> Gain:
    """Paired comparison of two checkpoints on the images both are scored on: second minus first."""
    a, b = _paired(first, second, protocol)
    gain = b - a
    unit = ceiling or 1.0
    return Gain(
        difference=_divided(_mean(gain), unit),
        interval=_span(interval(gain, seed), unit),
        wilcoxon_p=float(stats.wilcoxon(gain).pvalue) if np.any(gain != 0) else None,
        improved=None if not len(gain) else float((gain > 0).mean() + (gain == 0).mean() / 2),
        n_pairs=len(gain),
    )


def _paired(first: Group, second: Group, protocol: str) -> tuple[Array, Array]:
    _, places_a, places_b = np.intersect1d(first.index, second.index, return_indices=True)
    a, b = first.values(protocol)[places_a], second.values(protocol)[places_b]
    kept = ~(np.isnan(a) | np.isnan(b))
    return a[kept], b[kept]


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's step-down correction (Scand. J. Statist. 6, 1979) of a family of p-values; None stays None."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = highest
    return adjusted


def _mean(values: Array) -> float | None:
    return float(values.mean()) if len(values) else None


def _divided(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _span(between: tuple[float, float] | None, unit: float) -> list[float] | None:
    return None if between is None else [between[0] / unit, between[1] / unit]
