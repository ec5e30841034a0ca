"""Every table of a report and of the terminal, as headings and rows of text; others only print them."""

from __future__ import annotations

from collections.abc import Sequence

from evaluate.rows import ALIGNMENT, Comparison, Score
from evaluate.scores.comparisons import group_seeds, protocol_effect
from evaluate.scores.scores import Results

Table = tuple[str, list[str], list[list[str]]]
"""Title, header, rows of text."""


SECONDS_HEADING, SECONDS_FORM = "s / image", ".5f"


def report_tables(results: Results) -> list[Table]:
    """Every table of a report, in order."""
    tables = [
        _table("Comparisons, paired over images", _compared(results)),
        _table(_scores_title(results), filled([score_cells(item) for item in results.scores])),
        metric_table(results),
        _table("What the protocol changes", _effects(results)),
        _table("Seeds", _seeds(results)),
    ]
    return [table for table in tables if table[2]]


def terminal_tables(results: Results) -> list[Table]:
    """What the terminal shows of them, in order."""
    short = [_without(score_cells(item), "class mean", "img/s", SECONDS_HEADING) for item in results.scores]
    pairs = [
        {
            "second - first": f"{item.second} - {item.first}",
            "explainer": item.explainer,
            "protocol": item.protocol,
            **_without(comparison_cells(item), "Wilcoxon p"),
        }
        for item in results.comparisons
    ]
    tables = [_table("Scores", filled(short)), metric_table(results), _table("Comparisons", pairs)]
    return [table for table in tables if table[2]]


def _scores_title(results: Results) -> str:
    ceiling = results.ceiling
    unit = f"mean Spearman / {ceiling} (human ceiling)" if ceiling else "mean Spearman"
    return f"Scores: alignment is {unit}" if results.has_human_maps else "Scores"


def _compared(results: Results) -> list[dict[str, str]]:
    alignment = {(s.checkpoint, s.explainer, s.protocol): s.alignment for s in results.scores}
    return [
        {
            "first": item.first,
            "second": item.second,
            "explainer": item.explainer,
            "protocol": item.protocol,
            "first's alignment": figure(alignment[item.first, item.explainer, item.protocol]),
            "second's alignment": figure(alignment[item.second, item.explainer, item.protocol]),
            **comparison_cells(item),
        }
        for item in results.comparisons
    ]


def _effects(results: Results) -> list[dict[str, str]]:
    return [
        {
            "checkpoint": effect.checkpoint,
            "explainer": effect.explainer or "-",
            "paper": figure(effect.paper),
            "aligned": figure(effect.aligned),
            "aligned - paper": figure(effect.change, "+.4f"),
        }
        for effect in protocol_effect(results.scores)
    ]


def _seeds(results: Results) -> list[dict[str, str]]:
    return [
        {
            "model": family.model,
            "explainer": family.explainer or "-",
            "protocol": family.protocol or "-",
            "seeds": str(family.n_seeds),
            "mean alignment": figure(family.alignment),
            "spread (standard deviation)": figure(family.spread),
        }
        for family in group_seeds(results.scores)
    ]


def metric_table(results: Results) -> Table:
    """Explainers by further metrics and time; behind each value its rank among the explainers of one checkpoint.

    Without further metrics it has no rows.
    """
    first: dict[tuple[str, str | None], Score] = {}  # neither depends on the protocol
    for item in results.scores:
        first.setdefault((item.checkpoint, item.explainer), item)
    rows = [{"checkpoint": item.checkpoint, "explainer": item.explainer or "-"} for item in first.values()]
    for name in results.metrics:
        better = results.scores[0].measures[name].better
        values = {key: item.measures[name].value for key, item in first.items()}
        for row, cell in zip(rows, _ranked(values, better)):
            row[f"{name} ({better} is better)"] = cell
    seconds = {key: item.seconds_per_image for key, item in first.items()}
    for row, cell in zip(rows, _ranked(seconds, "lower", SECONDS_FORM)):
        row[f"{SECONDS_HEADING} (lower is better)"] = cell
    return _table("Explainers by metrics, with ranks", rows if results.metrics else [])


def _ranked(values: dict[tuple[str, str | None], float | None], better: str, form: str = ".4f") -> list[str]:
    """Each value by (checkpoint, explainer) as text, with its rank among those of the same checkpoint.

    What reads the same has the same rank.
    """
    sign = -1 if better == "higher" else 1
    texts = {key: figure(value, form) for key, value in values.items()}
    known = [(key[0], sign * float(texts[key])) for key, value in values.items() if value is not None]
    cells = []
    for (checkpoint, _), text in texts.items():
        ahead = sum(name == checkpoint and other < sign * float(text) for name, other in known) if text != "-" else 0
        cells.append(text if text == "-" else Ranked(text, ahead + 1))
    return cells


def _table(title: str, rows: Sequence[dict[str, str]]) -> Table:
    return title, list(rows[0]) if rows else [], [list(row.values()) for row in rows]


def score_cells(item: Score) -> dict[str, str]:
    """One score as text, by heading."""
    shown = {name: metric for name, metric in ALIGNMENT.items() if metric.heading}
    return {
        "checkpoint": item.checkpoint,
        "explainer": item.explainer or "-",
        "protocol": item.protocol or "-",
        "alignment": figure(item.alignment),
        "95 % interval": span(item.interval),
        "class mean": figure(item.per_class_mean),
        "centre bias": figure(item.centre_bias),
        **{metric.heading: figure(item.means[name]) for name, metric in shown.items()},
        "top-1 %": f"{item.top1:.2f}",
        "scored": str(item.n_images if item.n_scored is None else item.n_scored),
        "degen.": figure(item.n_degenerate, "d"),
        "img/s": f"{item.facts.images_per_second:.2f}",
        SECONDS_HEADING: figure(item.seconds_per_image, SECONDS_FORM),
    }


def filled(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Cells by heading without the columns that are dashes only; checkpoint and explainer stay."""
    kept = [name for name in rows[0] if name in ("checkpoint", "explainer") or any(row[name] != "-" for row in rows)]
    return [{name: row[name] for name in kept} for row in rows]


def comparison_cells(item: Comparison) -> dict[str, str]:
    """What a comparison found as text, by heading."""
    return {
        "difference": figure(item.difference, "+.4f"),
        "95 % interval": span(item.interval, "+.4f"),
        "Wilcoxon p": figure(item.wilcoxon_p, ".2g"),
        "Holm p": figure(item.holm_p, ".2g"),
        "images improved": figure(item.improved, ".0%"),
        "second is": item.verdict,
    }


def _without(cells: dict[str, str], *headings: str) -> dict[str, str]:
    return {heading: text for heading, text in cells.items() if heading not in headings}


def plain_table(table: Table) -> str:
    """A table for the terminal, without its title, with aligned columns."""
    _, header, rows = table
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def figure(value: float | None, form: str = ".4f") -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def span(between: Sequence[float] | None, form: str = ".4f") -> str:
    """An interval, or a dash where there is none."""
    return "-" if between is None else f"{between[0]:{form}} .. {between[1]:{form}}"


class Ranked(str):
    """A figure with its rank behind it, such as `0.5000 (rank 2)`; known by its type, as any name may read so."""

    value: str
    rank: int

    def __new__(cls, value: str, rank: int) -> Ranked:
        """Its text is that of both."""
        cell = super().__new__(cls, f"{value} (rank {rank})")
        cell.value, cell.rank = value, rank
        return cell
