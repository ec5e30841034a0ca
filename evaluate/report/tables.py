"""Every table of a report and of the terminal, as headings and rows of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluate.scores.comparisons import group_seeds, protocol_effect


def report_tables(scores: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]]) -> list[Table]:
    """Every table of a report, in order."""
    ceiling = scores[0].get("ceiling")
    unit = f"mean Spearman / {ceiling} (human ceiling)" if ceiling else "mean Spearman"
    title = f"Scores: alignment is {unit}" if scores[0]["protocol"] else "Scores"
    tables: list[Table] = [_table(title, filled([score_cells(item) for item in scores]))]
    if comparisons:
        tables.insert(0, _comparison_table(scores, comparisons))
    if scores[0]["measures"]:
        tables.append(measure_table(scores))
    if effects := protocol_effect(scores):
        head = ["checkpoint", "explainer", "paper", "aligned", "aligned - paper"]
        rows = [
            [e["checkpoint"], e["explainer"], figure(e["paper"]), figure(e["aligned"]), figure(e["change"], "+.4f")]
            for e in effects
        ]
        tables.append(("What the protocol changes", head, rows))
    if seeds := group_seeds(scores):
        head = ["model", "explainer", "protocol", "seeds", "mean alignment", "spread (standard deviation)"]
        rows = [
            [s["model"], s["explainer"], s["protocol"], str(s["n_seeds"]), figure(s["alignment"]), figure(s["spread"])]
            for s in seeds
        ]
        tables.append(("Seeds", head, rows))
    return tables


def _comparison_table(scores: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]]) -> Table:
    alignment = {(s["checkpoint"], s["explainer"], s["protocol"]): s["alignment"] for s in scores}
    rows = []
    for item in comparisons:
        both = {
            f"{which}'s alignment": figure(alignment[item[which], item["explainer"], item["protocol"]])
            for which in ("first", "second")
        }
        compared = {name: item[name] for name in ("first", "second", "explainer", "protocol")}
        rows.append({**compared, **both, **comparison_cells(item)})
    return _table("Comparisons, paired over images", rows)


def measure_table(scores: Sequence[dict[str, Any]]) -> Table:
    """Methods by measures and time, with the rank among the explainers of one checkpoint behind each value."""
    first: dict[tuple[str, str], dict[str, Any]] = {}  # neither depends on the protocol
    for item in scores:
        first.setdefault((item["checkpoint"], item["explainer"]), item)
    rows = [{"checkpoint": checkpoint, "explainer": explainer} for checkpoint, explainer in first]
    for name, found in scores[0]["measures"].items():
        values = {key: item["measures"][name]["value"] for key, item in first.items()}
        for row, cell in zip(rows, _ranked(values, found["better"])):
            row[f"{name} ({found['better']} is better)"] = cell
    seconds = {key: item["seconds_per_image"] for key, item in first.items()}
    for row, cell in zip(rows, _ranked(seconds, "lower", SECONDS_FORM)):
        row[f"{SECONDS_HEADING} (lower is better)"] = cell
    return _table("Methods by measures, with ranks", rows)


def _ranked(values: dict[tuple[str, str], float | None], better: str, form: str = ".4f") -> list[str]:
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
    return title, list(rows[0]), [list(row.values()) for row in rows]


SECONDS_HEADING, SECONDS_FORM = "s / image", ".5f"


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts with aligned columns."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def score_cells(item: dict[str, Any]) -> dict[str, str]:
    """One score as text, by heading."""
    return {
        "checkpoint": item["checkpoint"],
        "explainer": item["explainer"] or "-",
        "protocol": item["protocol"] or "-",
        "alignment": figure(item["alignment"]),
        "95 % interval": span(item["interval"]),
        "class mean": figure(item["per_class_mean"]),
        "centre bias": figure(item["centre_bias"]),
        "top-1 %": f"{item['top1']:.2f}",
        "scored": str(item.get("n_scored", item["n_images"])),
        "degen.": figure(item["n_degenerate"], "d"),
        "img/s": f"{item['images_per_second']:.2f}",
        SECONDS_HEADING: figure(item["seconds_per_image"], SECONDS_FORM),
    }


def filled(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Cells by heading without the columns that are dashes only; checkpoint and explainer stay."""
    kept = [name for name in rows[0] if name in ("checkpoint", "explainer") or any(row[name] != "-" for row in rows)]
    return [{name: row[name] for name in kept} for row in rows]


def comparison_cells(item: dict[str, Any]) -> dict[str, str]:
    """What a comparison found as text, by heading."""
    return {
        "difference": figure(item["difference"], "+.4f"),
        "95 % interval": span(item["interval"], "+.4f"),
        "Wilcoxon p": figure(item["wilcoxon_p"], ".2g"),
        "Holm p": figure(item["holm_p"], ".2g"),
        "images improved": figure(item["improved"], ".0%"),
        "second is": item["verdict"],
    }


def score_table(scores: Sequence[dict[str, Any]]) -> str:
    """The scores as a table for the terminal."""
    rows = filled([_without(score_cells(item), "class mean", "img/s", SECONDS_HEADING) for item in scores])
    note = f"\nPARTIAL: {scores[0]['partial']}" if scores[0]["partial"] else ""
    return plain_table(list(rows[0]), [list(row.values()) for row in rows]) + note


def comparison_table(comparisons: Sequence[dict[str, Any]]) -> str:
    """The comparisons as a table for the terminal."""
    rows = [
        {
            "second - first": f"{item['second']} - {item['first']}",
            "explainer": item["explainer"],
            "protocol": item["protocol"],
            **_without(comparison_cells(item), "Wilcoxon p"),
        }
        for item in comparisons
    ]
    return plain_table(list(rows[0]), [list(row.values()) for row in rows])


def _without(cells: dict[str, str], *headings: str) -> dict[str, str]:
    return {heading: text for heading, text in cells.items() if heading not in headings}


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


Table = tuple[str, list[str], list[list[str]]]
"""Title, header, rows of text."""
