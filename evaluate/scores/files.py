"""`scores.json`, `scores.csv`, `comparisons.json` and the events for TensorBoard."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from common.atomic import atomic_folder, file_name, write_text
from common.text import markdown
from evaluate.rows import ALIGNMENT, Score
from evaluate.scores.scores import Results


def csv_columns() -> list[str]:
    """Columns of `scores.csv`."""
    return [
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
        *(name for name, metric in ALIGNMENT.items() if metric.heading),
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
    ]


def write_scores(out: Path, results: Results) -> None:
    """Write `scores.json`, `scores.csv` and, if there are any, `comparisons.json` into the folder `out`."""
    entries = [item.entry(results.run) for item in results.scores]
    write_text(out / "scores.json", json.dumps(entries, indent=2) + "\n")
    if results.comparisons:
        compared = [item.entry() for item in results.comparisons]
        write_text(out / "comparisons.json", json.dumps(compared, indent=2) + "\n")
    else:
        (out / "comparisons.json").unlink(missing_ok=True)  # of a start that compared
    text = io.StringIO()
    writer = csv.DictWriter(text, csv_columns(), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for item, entry in zip(results.scores, entries):
        low, high = item.interval or (None, None)
        writer.writerow({**entry, "interval_low": low, "interval_high": high, "explainer_note": item.note})
    write_text(out / "scores.csv", text.getvalue())


def write_tensorboard(folder: Path, scores: Sequence[Score]) -> None:
    """Write alignment and top-1 as scalars: one run per checkpoint, in the place of that of an earlier start."""
    by_name: dict[str, list[Score]] = {}
    for item in scores:
        by_name.setdefault(file_name(item.checkpoint), []).append(item)
    for name, members in by_name.items():
        with atomic_folder(folder / name) as temporary:
            for item in members:
                _write_events(temporary, item)


def _write_events(folder: Path, item: Score) -> None:
    with SummaryWriter(str(folder), filename_suffix=f".{item.explainer}.{item.protocol}") as writer:
        if item.alignment is not None:
            writer.add_scalar(f"alignment/{item.explainer}/{item.protocol}", item.alignment, 0)
        writer.add_scalar("top1", item.top1, 0)
        if item.note:
            writer.add_text(f"note/{item.explainer}", markdown(item.note), 0)
