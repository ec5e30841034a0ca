"""Comparisons between checkpoints: plain against DCLS, seeds of one model, the two protocols."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluate.rows import common_notes
from evaluate.scores.groups import Group, GroupKey
from evaluate.scores.statistics import compare, holm


def compare_pairs(
    groups: dict[GroupKey, Group], pairs: Sequence[tuple[str, str]], ceiling: float | None, seed: int
) -> list[dict[str, Any]]:
    """Second minus first for every pair of checkpoints, explainer and protocol that both have.

    The Wilcoxon p-values of one explainer and protocol are a family: `holm_p` is corrected over its pairs.
    """
    combinations = list(dict.fromkeys((e, p) for _, e, p in groups if p is not None))
    out: list[dict[str, Any]] = []
    for explainer, protocol in combinations:
        assert protocol is not None
        family = [
            {"first": a, "second": b, "explainer": explainer, "protocol": protocol}
            | compare(groups[a, explainer, protocol], groups[b, explainer, protocol], protocol, ceiling, seed)
            for a, b in pairs
            if (a, explainer, protocol) in groups and (b, explainer, protocol) in groups
        ]
        for item, corrected in zip(family, holm([item["wilcoxon_p"] for item in family])):
            item["holm_p"] = corrected
        out += family
    return out


def seed_family(checkpoint: str) -> str:
    """Name of a model without its seed: `demo_dcls_seed3` and `demo_dcls-s3` belong to `demo_dcls`.

    But `caformer_s18` has its size in its name.
    """
    return re.sub(r"([_-]seed_?|-s)\d+$", "", checkpoint)


def group_seeds(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread (sample standard deviation) of alignment over seeds of one model, where there are several."""
    families: dict[tuple[str, str, str, str], list[float]] = {}
    for item in scores:
        if item["alignment"] is not None:
            key = (seed_family(item["checkpoint"]), item["model"], item["explainer"], item["protocol"])
            families.setdefault(key, []).append(item["alignment"])
    return [
        {
            "model": model,
            "explainer": explainer,
            "protocol": protocol,
            "n_seeds": len(values),
            "alignment": float(np.mean(values)),
            "spread": float(np.std(values, ddof=1)),
        }
        for (model, _, explainer, protocol), values in families.items()
        if len(values) > 1
    ]


def verdict(item: dict[str, Any], seeds: Sequence[dict[str, Any]] = ()) -> str:
    """One comparison in words: `higher`, `lower`, `no clear difference`, or `within the spread between seeds`."""
    if item["difference"] is None or item["interval"] is None:
        return "not comparable"
    spreads = [
        family["spread"]
        for family in seeds
        if family["model"] in (seed_family(item["first"]), seed_family(item["second"]))
        and (family["explainer"], family["protocol"]) == (item["explainer"], item["protocol"])
    ]
    if spreads and abs(item["difference"]) < max(spreads):
        return "within the spread between seeds"
    low, high = item["interval"]
    significant = item["holm_p"] is not None and item["holm_p"] < 0.05
    if significant and low > 0:
        return "higher"
    if significant and high < 0:
        return "lower"
    return "no clear difference"


def protocol_effect(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `aligned` changes against `paper` for each checkpoint and explainer that has both."""
    by_key = {(s["checkpoint"], s["explainer"], s["protocol"]): s["alignment"] for s in scores}
    out = []
    for (checkpoint, explainer, protocol), paper in by_key.items():
        aligned = by_key.get((checkpoint, explainer, "aligned"))
        if protocol == "paper" and paper is not None and aligned is not None:
            out.append(
                {
                    "checkpoint": checkpoint,
                    "explainer": explainer,
                    "paper": paper,
                    "aligned": aligned,
                    "change": aligned - paper,
                }
            )
    return out


def judged_pairs(
    groups: dict[GroupKey, Group],
    pairs: Sequence[tuple[str, str]],
    scores: Sequence[dict[str, Any]],
    notes: Mapping[str, Mapping[str, str]],
    ceiling: float | None,
    seed: int,
) -> list[dict[str, Any]]:
    """`compare_pairs` with a `verdict` each, and what a reader of both checkpoints' explainers must know.

    Args:
        groups: the rows.
        pairs: checkpoints, first and second.
        scores: of the run, for the spread between seeds.
        notes: by checkpoint and explainer.
        ceiling: see `evaluate.scores.statistics.score`.
        seed: of the bootstrap.
    """
    comparisons = compare_pairs(groups, pairs, ceiling, seed)
    seeds = group_seeds(scores)
    for item in comparisons:
        pair = common_notes({name: notes[name] for name in (item["first"], item["second"])})
        item |= {"verdict": verdict(item, seeds), "explainer_note": pair.get(item["explainer"])}
    return comparisons
