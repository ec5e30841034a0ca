"""Charts of a report: alignment as bars, alignment against accuracy; SVG for the page, PNG and PDF for papers."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from common.atomic import atomic_file, file_name
from evaluate.explainers.registry import with_warning
from evaluate.metrics.registry import MEASURES
from evaluate.rows import Score
from evaluate.scores.scores import Results

FORMATS = ("png", "pdf")
PLAIN, TWIN = "#7b8794", "#d1495b"
plain_text = rc_context({"text.parse_math": False})
"""Names may hold dollar signs, between which matplotlib would read a formula."""
STYLES = ("-", "--", ":")
"""Of lines, in turn once the ten colours are used up."""


@dataclass(frozen=True)
class Chart:
    """One figure for the page."""

    explainer: str
    """Whose figure it is; empty if it shows several."""
    svg: str
    """Its black follows the page's text colour."""


@plain_text
def bar_chart(scores: Sequence[Score]) -> Figure:
    """Alignment with its interval, a bar a checkpoint, for one explainer and protocol; DCLS twins in red."""
    figure = Figure(figsize=(max(5.0, 0.55 * len(scores) + 1.5), 3.6), layout="constrained")
    axes = figure.subplots()
    values = [_known(item.alignment) for item in scores]
    errors = [list(error) for error in zip(*map(_error, scores))]
    axes.bar(range(len(scores)), values, yerr=errors, color=[_colour(item) for item in scores], capsize=3)
    axes.set_xticks(range(len(scores)), [item.checkpoint for item in scores], rotation=35, ha="right")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel(_alignment_label(scores))
    axes.set_title(_title(scores[0]))
    return figure


@plain_text
def accuracy_scatter(scores: Sequence[Score]) -> Figure:
    """Alignment against top-1 on the same images, a point a checkpoint, for one explainer and protocol."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for item in scores:
        place, error = (item.top1, _known(item.alignment)), [[side] for side in _error(item)]
        axes.errorbar(*place, error, fmt="o", color=_colour(item), capsize=2)
        axes.annotate(item.checkpoint, place, (4, 4), textcoords="offset points", fontsize=7)
    axes.margins(x=0.25)  # room for the names
    axes.set_xlabel("top-1 on these images (%)")
    axes.set_ylabel(_alignment_label(scores))
    axes.set_title(_title(scores[0]))
    return figure


@plain_text
def measure_curves(scores: Sequence[Score], name: str, labels: tuple[str, str]) -> Figure:
    """Mean curve of a metric such as Insertion, a line per explainer, for one checkpoint; named best first.

    `labels` are those of both axes.
    """
    figure = Figure(figsize=(6.8, max(4.2, 0.16 * len(scores) + 1)), layout="constrained")
    axes = figure.subplots()
    lines = []
    for number, item in enumerate(scores):
        found = item.measures[name]
        value, curve = _known(found.value), [np.nan if y is None else y for y in found.curve or ()]
        share = [100 * n / (len(curve) - 1) for n in range(len(curve))]
        colour, style = f"C{number % 10}", STYLES[number // 10 % len(STYLES)]
        label = f"{value:.3f}  {textwrap.fill(_explainer(item), 30)}"
        (line,) = axes.plot(share, curve, style, color=colour, linewidth=1.4, label=label)
        lines.append((value if found.better == "lower" else -value, number, line))
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(f"{name}, {scores[0].checkpoint}")
    handles = [line for _, _, line in sorted(lines)]
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside right upper", handlelength=3)
    return figure


FIGURES: dict[str, Callable[[Sequence[Score]], Figure]] = {"bars": bar_chart, "accuracy": accuracy_scatter}


def figure_files(
    explainers: Sequence[str], protocols: Sequence[str], checkpoints: Sequence[str], measures: Sequence[str]
) -> list[str]:
    """Every file that `write_figures` may write for such scores, by its name."""
    names = [f"{kind}-{e}-{p}" for kind in FIGURES for e in explainers for p in protocols]
    names += [f"{measure}-{checkpoint}" for measure in _drawn(measures) for checkpoint in checkpoints]
    return [f"{file_name(name)}.{suffix}" for name in names for suffix in FORMATS]


def _drawn(metrics: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The metrics that have a chart of their curves, and what its axes say."""
    return {name: axes for name in metrics if (axes := MEASURES.find(name).entry.axes)}


@plain_text
def write_figures(folder: Path, results: Results) -> list[Chart]:
    """Draw every figure for every explainer and protocol, and the curves of every metric that has some.

    Args:
        folder: receives NAME.png and NAME.pdf.
        results: scores without alignment are left out of what shows it.
    """
    families: dict[tuple[str | None, str | None], list[Score]] = {}
    for item in results.scores:
        if item.alignment is not None:
            families.setdefault((item.explainer, item.protocol), []).append(item)
    figures = {
        f"{kind}-{explainer}-{protocol}": (explainer or "", draw(members))
        for (explainer, protocol), members in families.items()
        for kind, draw in FIGURES.items()
    }
    first = results.scores[0].protocol  # curves do not depend on it
    for checkpoint in dict.fromkeys(item.checkpoint for item in results.scores):
        members = [s for s in results.scores if (s.checkpoint, s.protocol) == (checkpoint, first)]
        for name, axes in _drawn(results.metrics).items():
            if drawn := [s for s in members if s.measures[name].curve]:
                figures[f"{name}-{checkpoint}"] = "", measure_curves(drawn, name, axes)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, figure) in figures.items():
        for suffix in FORMATS:
            with atomic_file(folder / f"{file_name(name)}.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix, dpi=160)
    return [Chart(explainer, _svg(figure)) for explainer, figure in figures.values()]


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"#000000", "currentColor", svg)
    # Glyphs have no colour of their own and would stay black on a dark page.
    return svg.replace("<svg ", '<svg fill="currentColor" ', 1)


def _title(item: Score) -> str:
    return textwrap.fill(f"{_explainer(item)}, protocol {item.protocol}", 44)


def _explainer(item: Score) -> str:
    return with_warning(item.explainer or "")


def _colour(item: Score) -> str:
    return TWIN if "dcls" in item.facts.model or "dcls" in item.checkpoint else PLAIN


def _known(value: float | None) -> float:
    assert value is not None  # what lacks it is left out
    return value


def _error(item: Score) -> tuple[float, float]:
    """How far the interval reaches below and above the alignment."""
    value = _known(item.alignment)
    low, high = item.interval or (value, value)
    return value - low, high - value


def _alignment_label(scores: Sequence[Score]) -> str:
    return "Spearman / human ceiling" if scores[0].ceiling else "mean Spearman"
