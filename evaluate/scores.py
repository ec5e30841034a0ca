"""`scores.json`, `comparisons.json` and the tables that the terminal shows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from common.atomic import atomic_folder, file_name, write_text
from common.text import markdown
from evaluate.explainers import parse_method
from evaluate.runner import SHARED_PASS
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
    "seconds_per_image",
    "seconds_per_image_shared",
    "partial",
    "explainer_note",
)

SECONDS_HEADING, SECONDS_FORM = "s / image", ".5f"


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
        checkpoints: what is known of each checkpoint, by name; of its `explainer_seconds` each explainer gets its
            own `seconds_per_image` and `seconds_per_image_shared`.
        run: what holds for the whole run (data, versions, partial, ...), repeated in every object.
        ceiling: see `evaluate.statistics.score`.
        seed: of the bootstrap.
    """
    return [
        {
            "checkpoint": checkpoint,
            **{name: value for name, value in checkpoints[checkpoint].items() if name != "explainer_seconds"},
            "explainer": explainer,
            "protocol": protocol,
            **_seconds(checkpoints[checkpoint]["explainer_seconds"], explainer, len(group.index)),
            **score(group, protocol, ceiling, seed),
            **run,
        }
        for (checkpoint, explainer, protocol), group in groups.items()
    ]


def _seconds(spent: Mapping[str, float], explainer: str | None, images: int) -> dict[str, float | None]:
    """Wall time an image if the explainer ran alone, and the part of it that the explainers at the layer share."""
    if explainer is None or explainer not in spent:
        return {"seconds_per_image": None, "seconds_per_image_shared": None}
    shared = spent[SHARED_PASS] if parse_method(explainer)[0].at_layer else 0.0
    return {"seconds_per_image": (spent[explainer] + shared) / images, "seconds_per_image_shared": shared / images}


def write_scores(out: Path, scores: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]]) -> None:
    """Write `scores.json`, `scores.csv` and, if there are any, `comparisons.json` into the folder `out`."""
    write_text(out / "scores.json", json.dumps(list(scores), indent=2) + "\n")
    if comparisons:
        write_text(out / "comparisons.json", json.dumps(list(comparisons), indent=2) + "\n")
    else:
        (out / "comparisons.json").unlink(missing_ok=True)  # of a start that compared
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for item in scores:
        low, high = item["interval"] or (None, None)
        note = item["explainer_notes"].get(item["explainer"])
        writer.writerow({**item, "interval_low": low, "interval_high": high, "explainer_note": note})
    write_text(out / "scores.csv", text.getvalue())


def write_tensorboard(folder: Path, scores: Sequence[dict[str, Any]]) -> None:
    """Write alignment and top-1 as scalars, a run a checkpoint, each in the place of its run of an earlier start."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for item in scores:
        by_name.setdefault(file_name(item["checkpoint"]), []).append(item)
    for name, members in by_name.items():
        with atomic_folder(folder / name) as temporary:
            for item in members:
                _write_events(temporary, item)


def _write_events(folder: Path, item: dict[str, Any]) -> None:
    with SummaryWriter(str(folder), filename_suffix=f".{item['explainer']}.{item['protocol']}") as writer:
        if item["alignment"] is not None:
            writer.add_scalar(f"alignment/{item['explainer']}/{item['protocol']}", item["alignment"], 0)
        writer.add_scalar("top1", item["top1"], 0)
        if note := item["explainer_notes"].get(item["explainer"]):
            writer.add_text(f"note/{item['explainer']}", markdown(note), 0)


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
