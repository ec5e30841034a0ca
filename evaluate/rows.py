"""The contract of result files: the columns of the per-image table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

Question = dict[str, Any]
"""What results depend on, by what people call it; plain values."""


COLUMNS = pa.schema(
    [
        ("image_id", pa.string()),
        ("index", pa.int64()),
        ("checkpoint", pa.string()),
        ("explainer", pa.string()),
        ("protocol", pa.string()),
        ("spearman", pa.float64()),
        ("degenerate", pa.bool_()),
        ("dice", pa.float64()),
        ("iou", pa.float64()),
        ("centre_spearman", pa.float64()),
        ("label", pa.int64()),
        ("predicted", pa.int64()),
        ("correct", pa.bool_()),
    ]
)
"""Columns of `per_image.parquet`, before those of further measures. Where there are no human maps, protocol and
what follows from it are empty; where nothing is explained, an image has one row."""


def schema_with(measures: Sequence[str], curves: Sequence[str]) -> pa.Schema:
    """The columns with those of further measures: a number each, and a list `NAME detail` for those with a curve."""
    schema = COLUMNS
    for name in measures:
        schema = schema.append(pa.field(name, pa.float64()))
        if name in curves:
            schema = schema.append(pa.field(f"{name} detail", pa.list_(pa.float64())))
    return schema


def common_notes(by_checkpoint: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """By explainer, one note for several checkpoints: the same of all, or each one's behind its name."""
    found: dict[str, str] = {}
    for explainer in dict.fromkeys(name for notes in by_checkpoint.values() for name in notes):
        texts = {checkpoint: notes[explainer] for checkpoint, notes in by_checkpoint.items() if explainer in notes}
        one, *more = set(texts.values())
        alike = not more and len(texts) == len(by_checkpoint)
        found[explainer] = one if alike else " | ".join(f"{checkpoint}: {text}" for checkpoint, text in texts.items())
    return found


Row = dict[str, Any]


SHARED_PASS = "shared pass"
"""Beside the names of explainers: the pass at the layer that they share."""


OTHER_HUMAN = "other_human"
"""The baseline that knows where people look, but in another image: the human map of the data set's next one."""
