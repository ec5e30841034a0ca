"""Comparisons between checkpoints: plain against DCLS, seeds of one model, the two protocols."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluate.rows import Comparison, Score, common_notes
from evaluate.scores.groups import Group, GroupKey
from evaluate.scores.statistics import compare, holm


@dataclass(kw_only=True)
class SeedFamily:
    """Alignment over seeds of one model, for one explainer and protocol."""

    model: str
    """The name without its seed."""
    explainer: str | None
    protocol: str | None
    n_seeds: int
    alignment: float
    """Mean."""
    spread: float
    """Sample standard deviation."""


@dataclass(kw_only=True)
class ProtocolEffect:
    """Alignment of one checkpoint and explainer under both protocols."""

    checkpoint: str
    explainer: str | None
    paper: float
    aligned: float

    @property
    def change(self) -> float:
        """What `aligned` changes against `paper`."""
        return self.aligned - self.paper


def compare_pairs(
    groups: dict[GroupKey, Group], pairs: Sequence[tuple[str, str]], ceiling: float | None, seed: int
) -> list[Comparison]:
    """Second minus first for every pair of checkpoints, explainer and protocol that both have.

    The Wilcoxon p-values of one explainer and protocol are a family: `holm_p` is corrected over its pairs.
    """
    out: list[Comparison] = []
    for explainer, protocol in dict.fromkeys((e, p) for _, e, p in groups):
        if explainer is None or protocol is None:
            continue
        family = []
        for a, b in pairs:
            first, second = groups.get((a, explainer, protocol)), groups.get((b, explainer, protocol))
            if first is not None and second is not None:
                gain = compare(first, second, protocol, ceiling, seed)
                family.append(Comparison(first=a, second=b, explainer=explainer, protocol=protocol, **vars(gain)))
        corrected = holm([item.wilcoxon_p for item in family])
        out += [replace(item, holm_p=p) for item, p in zip(family, corrected)]
    return out


def seed_family(checkpoint: str) -> str:
    """Name of a model without its seed: `demo_dcls_seed3` and `demo_dcls-s3` belong to `demo_dcls`.

    But `caformer_s18` has its size in its name.
    """
    return re.sub(r"([_-]seed_?|-s)\d+$", "", checkpoint)


def group_seeds(scores: Sequence[Score]) -> list[SeedFamily]:
    """Mean and spread of alignment over seeds of one model, where there are several."""
    families: dict[tuple[str, str, str | None, str | None], list[float]] = {}
    for item in scores:
        if item.alignment is not None:
            key = (seed_family(item.checkpoint), item.facts.model, item.explainer, item.protocol)
            families.setdefault(key, []).append(item.alignment)
    return [
        SeedFamily(
            model=model,
            explainer=explainer,
            protocol=protocol,
            n_seeds=len(values),
            alignment=float(np.mean(values)),
            spread=float(np.std(values, ddof=1)),
        )
        for (model, _, explainer, protocol), values in families.items()
        if len(values) > 1
    ]


def verdict(item: Comparison, seeds: Sequence[SeedFamily] = ()) -> str:
    """One comparison in words: `higher`, `lower`, `no clear difference`, or `within the spread between seeds`."""
    if item.difference is None or item.interval is None:
        return "not comparable"
    spreads = [
        family.spread
        for family in seeds
        if family.model in (seed_family(item.first), seed_family(item.second))
        and (family.explainer, family.protocol) == (item.explainer, item.protocol)
    ]
    if spreads and abs(item.difference) < max(spreads):
        return "within the spread between seeds"
    low, high = item.interval
    significant = item.holm_p is not None and item.holm_p < 0.05
    if significant and low > 0:
        return "higher"
    if significant and high < 0:
        return "lower"
    return "no clear difference"


def protocol_effect(scores: Sequence[Score]) -> list[ProtocolEffect]:
    """What `aligned` changes against `paper` for each checkpoint and explainer that has both."""
    by_key = {(s.checkpoint, s.explainer, s.protocol): s.alignment for s in scores}
    out = []
    for (checkpoint, explainer, protocol), paper in by_key.items():
        aligned = by_key.get((checkpoint, explainer, "aligned"))
        if protocol == "paper" and paper is not None and aligned is not None:
            out.append(ProtocolEffect(checkpoint=checkpoint, explainer=explainer, paper=paper, aligned=aligned))
    return out


def judged_pairs(
    groups: dict[GroupKey, Group],
    pairs: Sequence[tuple[str, str]],
    scores: Sequence[Score],
    ceiling: float | None,
    seed: int,
) -> list[Comparison]:
    """`compare_pairs` with a `verdict` each, and what a reader of both checkpoints' explainers must know.

    Args:
        groups: the rows.
        pairs: checkpoints, first and second.
        scores: of the run, for the spread between seeds and the notes.
        ceiling: see `evaluate.scores.statistics.score`.
        seed: of the bootstrap.
    """
    seeds = group_seeds(scores)
    notes = {item.checkpoint: item.facts.explainer_notes for item in scores}
    judged = []
    for item in compare_pairs(groups, pairs, ceiling, seed):
        both = common_notes({name: notes[name] for name in (item.first, item.second)})
        judged.append(replace(item, verdict=verdict(item, seeds), explainer_note=both.get(item.explainer)))
    return judged
