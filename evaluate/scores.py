"""`scores.json`, `comparisons.json` and the tables that the terminal shows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from common.atomic import atomic_folder, write_text
from evaluate.statistics import Group, GroupKey, score

CSV_COLUMNS = (
    "checkpoint",
    "model",
    "explainer",
    "protocol",
    "alignment",
    "interval_low",
    "interval_high",
    "mean_spearman",
    "per_class_mean",
    "centre_bias",
    "top1",
    "n_images",
    "n_scored",
    "n_degenerate",
    "num_params",
    "images_per_second",
    "partial",
)


def make_scores(
    groups: dict[GroupKey, Group],
    checkpoints: dict[str, dict[str, Any]],
    run: dict[str, Any],
    ceiling: float | None,
    seed: int,
) -> list[dict[str, Any]]:
    """One score object for each checkpoint x explainer x protocol.

    Args:
        groups: the rows.
        checkpoints: what is known of each checkpoint, by name.
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
            **score(group, protocol, ceiling, seed),
            **run,
        }
        for (checkpoint, explainer, protocol), group in groups.items()
    ]


def write_scores(out: Path, scores: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]]) -> None:
    """Write `scores.json`, `scores.csv` and, if there are any, `comparisons.json` into the folder `out`."""
    write_text(out / "scores.json", json.dumps(list(scores), indent=2) + "\n")
    if comparisons:
        write_text(out / "comparisons.json", json.dumps(list(comparisons), indent=2) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for item in scores:
        low, high = item["interval"] or (None, None)
        writer.writerow({**item, "interval_low": low, "interval_high": high})
    write_text(out / "scores.csv", text.getvalue())


def write_tensorboard(folder: Path, scores: Sequence[dict[str, Any]]) -> None:
    """Write alignment and top-1 as scalars, a run a checkpoint, in the place of those of an earlier start."""
    with atomic_folder(folder) as temporary:
        for item in scores:
            name = item["checkpoint"].replace("/", "_").replace(":", "_")
            with SummaryWriter(
                str(temporary / name), filename_suffix=f".{item['explainer']}.{item['protocol']}"
            ) as writer:
                if item["alignment"] is not None:
                    writer.add_scalar(f"alignment/{item['explainer']}/{item['protocol']}", item["alignment"], 0)
                writer.add_scalar("top1", item["top1"], 0)


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts with aligned columns."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def score_table(scores: Sequence[dict[str, Any]]) -> str:
    """The scores as a table for the terminal."""
    header = (
        "checkpoint",
        "explainer",
        "protocol",
        "alignment",
        "95 % interval",
        "centre",
        "top-1",
        "scored",
        "degen.",
    )
    rows = [
        (
            item["checkpoint"],
            item["explainer"] or "-",
            item["protocol"] or "-",
            figure(item["alignment"]),
            span(item["interval"]),
            figure(item["centre_bias"]),
            f"{item['top1']:.2f}",
            str(item.get("n_scored", item["n_images"])),
            str(item.get("n_degenerate", "-")),
        )
        for item in scores
    ]
    note = f"\nPARTIAL: {scores[0]['partial']}" if scores[0]["partial"] else ""
    return plain_table(header, rows) + note


def comparison_table(comparisons: Sequence[dict[str, Any]]) -> str:
    """The comparisons as a table for the terminal."""
    header = ("second - first", "explainer", "protocol", "difference", "95 % interval", "Holm p", "improved", "verdict")
    rows = [
        (
            f"{item['second']} - {item['first']}",
            item["explainer"],
            item["protocol"],
            figure(item["difference"], "+.4f"),
            span(item["interval"], "+.4f"),
            figure(item["holm_p"], ".2g"),
            figure(item["improved"], ".0%"),
            item["verdict"],
        )
        for item in comparisons
    ]
    return plain_table(header, rows)


def figure(value: float | None, form: str = ".4f") -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def span(between: Sequence[float] | None, form: str = ".4f") -> str:
    """An interval, or a dash where there is none."""
    return "-" if between is None else f"{between[0]:{form}} .. {between[1]:{form}}"
