"""`scores.json`, `scores.csv`, `comparisons.json` and the events for TensorBoard."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.atomic import atomic_folder, file_name, write_text
from evaluate.scores.scores import _write_events

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
