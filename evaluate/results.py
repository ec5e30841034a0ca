"""What a run leaves: `scores.json`, `per_image.parquet` and the table in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.atomic import atomic_file, write_text
from evaluate.statistics import Row, score

COLUMNS = pa.schema(
    [
        ("image_id", pa.string()),
        ("index", pa.int64()),
        ("checkpoint", pa.string()),
        ("explainer", pa.string()),
        ("protocol", pa.string()),
        ("spearman", pa.float64()),
        ("degenerate", pa.bool_()),
        ("label", pa.int64()),
        ("predicted", pa.int64()),
        ("correct", pa.bool_()),
    ]
)
"""Columns of `per_image.parquet`; the last ones of explainers are empty where there are no human maps."""


def group_rows(rows: Iterable[Row]) -> dict[tuple[str, str | None, str | None], list[Row]]:
    """Rows by (checkpoint, explainer, protocol), in the order in which they first appear."""
    groups: dict[tuple[str, str | None, str | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["checkpoint"], row.get("explainer"), row.get("protocol")), []).append(row)
    return groups


def make_scores(
    rows: Sequence[Row], checkpoints: dict[str, dict[str, Any]], run: dict[str, Any], ceiling: float | None, seed: int
) -> list[dict[str, Any]]:
    """One score object for each checkpoint x explainer x protocol.

    Args:
        rows: per-image rows.
        checkpoints: for each checkpoint's name what is known of it (model, source, hash, ...).
        run: what holds for the whole run (data, versions, partial, ...), repeated in every object.
        ceiling: see `evaluate.statistics.score`.
        seed: of the bootstrap.
    """
    return [
        {
            "checkpoint": checkpoint,
            **checkpoints[checkpoint],
            "explainer": explainer,
            "protocol": protocol,
            **score(members, ceiling, seed),
            **run,
        }
        for (checkpoint, explainer, protocol), members in group_rows(rows).items()
    ]


def write_results(out: Path, scores: Sequence[dict[str, Any]], rows: Sequence[Row]) -> None:
    """Write `scores.json` and `per_image.parquet` into the folder `out`, each whole or not at all."""
    table = pa.Table.from_pylist([{name: row.get(name) for name in COLUMNS.names} for row in rows], schema=COLUMNS)
    with atomic_file(out / "per_image.parquet") as temporary:
        pq.write_table(table, temporary)
    write_text(out / "scores.json", json.dumps(scores, indent=2) + "\n")


def score_table(scores: Sequence[dict[str, Any]]) -> str:
    """The scores as a table for the terminal."""
    header = ("checkpoint", "explainer", "protocol", "alignment", "95 % interval", "top-1", "scored", "degenerate")
    lines = [header, *(_table_line(item) for item in scores)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    if any(item["partial"] for item in scores):
        text.append(f"PARTIAL: {scores[0]['partial']}")
    return "\n".join(text)


def _table_line(item: dict[str, Any]) -> tuple[str, ...]:
    between = item["interval"]
    return (
        item["checkpoint"],
        item["explainer"] or "-",
        item["protocol"] or "-",
        "-" if item["alignment"] is None else f"{item['alignment']:.4f}",
        "-" if between is None else f"{between[0]:.4f} .. {between[1]:.4f}",
        f"{item['top1']:.2f}",
        str(item.get("n_scored", item["n_images"])),
        str(item.get("n_degenerate", "-")),
    )
