"""One score for each checkpoint, explainer and protocol, and the results of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluate.explainers.registry import EXPLAINERS
from evaluate.rows import SHARED_PASS, Comparison, DataFacts, MeasuredFacts, RunFacts, Score
from evaluate.scores.groups import Group, GroupKey
from evaluate.scores.statistics import score


@dataclass(kw_only=True)
class Results:
    """What a run found out."""

    run: RunFacts
    data: DataFacts
    """Of the first checkpoint; each score has its own."""
    ceiling: float | None
    """See `evaluate.scores.statistics.score`."""
    has_human_maps: bool
    metrics: Sequence[str]
    """Further metrics of every score."""
    scores: Sequence[Score]
    """At least one."""
    comparisons: Sequence[Comparison]


def make_scores(
    groups: dict[GroupKey, Group], checkpoints: Mapping[str, MeasuredFacts], ceiling: float | None, seed: int
) -> list[Score]:
    """One score for each checkpoint x explainer x protocol.

    Args:
        groups: the rows.
        checkpoints: what is known of each checkpoint, by name.
        ceiling: see `evaluate.scores.statistics.score`.
        seed: of the bootstrap.
    """
    out = []
    for (checkpoint, explainer, protocol), group in groups.items():
        facts = checkpoints[checkpoint]
        whole, shared = _seconds(facts.explainer_seconds, explainer, len(group.index))
        out.append(
            Score(
                checkpoint=checkpoint,
                explainer=explainer,
                protocol=protocol,
                facts=facts,
                seconds_per_image=whole,
                seconds_per_image_shared=shared,
                **vars(score(group, protocol, ceiling, seed)),
            )
        )
    return out


def _seconds(spent: Mapping[str, float], explainer: str | None, images: int) -> tuple[float, float] | tuple[None, None]:
    """Wall time per image as if the explainer ran alone, and the part of it that the explainers at the layer share."""
    if explainer is None or explainer not in spent:
        return None, None
    shared = spent[SHARED_PASS] if EXPLAINERS.find(explainer).entry.at_layer else 0.0
    return (spent[explainer] + shared) / images, shared / images
