"""The contract of result files: the columns of the per-image table, and what scores and comparisons hold.

`docs/results.md` says the same for those who read the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import pyarrow as pa

Question = dict[str, Any]
"""What results depend on, by what people call it; plain values."""


Row = dict[str, Any]


SHARED_PASS = "shared pass"
"""Beside the names of explainers: the pass at the layer that they share."""


OTHER_HUMAN = "other_human"
"""The baseline that knows where people look, but in another image: the human map of the data set's next one."""


@dataclass(frozen=True, kw_only=True)
class AlignmentMetric:
    """A column of alignment with human maps: a value per image, explainer and protocol."""

    better: Literal["higher", "lower"] | None = None
    """None: neither; it says something of another column."""
    type: pa.DataType = field(default_factory=pa.float64)
    averaged: bool = True
    """Whether scores hold its mean under its name; not of the columns that make `alignment` and what belongs to it."""
    heading: str = ""
    """Of its mean in tables; `scores.csv` then has it too. Empty: in neither."""


ALIGNMENT: dict[str, AlignmentMetric] = {
    "spearman": AlignmentMetric(better="higher", averaged=False),
    "degenerate": AlignmentMetric(type=pa.bool_(), averaged=False),
    "dice": AlignmentMetric(better="higher"),
    "iou": AlignmentMetric(better="higher"),
    "centre_spearman": AlignmentMetric(averaged=False),
}
"""Every column of alignment by its name, in order; `evaluate.run.alignment` has a function for each.

Schema, groups, scores, CSV columns and table cells follow from this table.
"""


def averaged_metrics() -> list[str]:
    """The alignment metrics of which scores hold the mean."""
    return [name for name, metric in ALIGNMENT.items() if metric.averaged]


def table_schema(metrics: Sequence[str] = (), curves: Sequence[str] = ()) -> pa.Schema:
    """Columns of `per_image.parquet`: the fixed ones, those of alignment, those of further metrics.

    Where there are no human maps, protocol and what follows from it are empty; where nothing is explained, an image has
    one row.

    Args:
        metrics: a column of numbers each.
        curves: those of them that have a column of lists besides.
    """
    columns = [
        ("image_id", pa.string()),
        ("index", pa.int64()),
        ("checkpoint", pa.string()),
        ("explainer", pa.string()),
        ("protocol", pa.string()),
        *((name, metric.type) for name, metric in ALIGNMENT.items()),
        ("label", pa.int64()),
        ("predicted", pa.int64()),
        ("correct", pa.bool_()),
    ]
    for name in metrics:
        columns.append((name, pa.float64()))
        if name in curves:
            columns.append((detail_column(name), pa.list_(pa.float64())))
    return pa.schema(columns)


def detail_column(metric: str) -> str:
    """Column of the curves of a further metric."""
    return f"{metric} detail"


def common_notes(by_checkpoint: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """By explainer, one note for several checkpoints: the same of all, or each one's behind its name."""
    found: dict[str, str] = {}
    for explainer in dict.fromkeys(name for notes in by_checkpoint.values() for name in notes):
        texts = {checkpoint: notes[explainer] for checkpoint, notes in by_checkpoint.items() if explainer in notes}
        one, *more = set(texts.values())
        alike = not more and len(texts) == len(by_checkpoint)
        found[explainer] = one if alike else " | ".join(f"{checkpoint}: {text}" for checkpoint, text in texts.items())
    return found


@dataclass(kw_only=True)
class DataFacts:
    """What is known of a data set."""

    name: str
    root: str | None
    """Where it lies; None for one that is generated."""
    n_images: int
    """All it has, measured or not."""
    fingerprint: str


@dataclass(kw_only=True)
class CheckpointFacts:
    """What is known of a checkpoint before it is measured."""

    model: str
    source: str
    weights_sha256: str
    num_params: int
    transform: dict[str, int]
    """`resize` and `crop`, in pixels."""
    data: DataFacts


@dataclass(kw_only=True)
class MeasuredFacts(CheckpointFacts):
    """What is known of a checkpoint once it is measured."""

    seconds: float
    """Wall time of its parts."""
    images_per_second: float
    explainer_seconds: dict[str, float]
    """Of each explainer's own part and of `SHARED_PASS`, over all processes; each score has its own from it."""
    explainer_notes: dict[str, str]
    """By explainer, what a reader must know."""
    batch_size: int
    threads: int
    """Of the CPU."""
    bf16_deviation: dict[str, float] | None = None
    """`mean` and `max` of what bfloat16 features change Spearman by; None where they were not asked for."""

    def entry(self) -> dict[str, Any]:
        """Its part of an entry in `scores.json`."""
        out = asdict(self)
        del out["explainer_seconds"]
        if self.bf16_deviation is None:
            del out["bf16_deviation"]
        return out


@dataclass(kw_only=True)
class RunFacts:
    """What holds for every score of a run."""

    partial: str
    """Why the scores are not those of the whole data set; empty if they are."""
    lacking: list[str]
    """What could not be measured, and why."""
    precision: str
    compile: bool
    device: str
    processes: int
    seed: int
    command: str
    versions: dict[str, str]
    layer: str
    target: str


@dataclass(kw_only=True)
class MetricScore:
    """A further metric over all images of a score."""

    value: float | None
    better: str
    settings: dict[str, Any]
    defined: int
    """Images that have a value."""
    curve: list[float | None] | None
    """Mean over images, where the metric has curves."""


@dataclass(kw_only=True)
class Figures:
    """What the rows of one checkpoint, explainer and protocol come to; None for a figure that does not exist."""

    n_images: int
    top1: float
    """In %."""
    measures: dict[str, MetricScore]
    alignment: float | None = None
    """Mean Spearman / ceiling."""
    interval: list[float] | None = None
    """95 %, of `alignment`."""
    mean_spearman: float | None = None
    per_class_mean: float | None = None
    """Mean over classes of the classes' means, / ceiling."""
    centre_bias: float | None = None
    """Alignment of a centred Gaussian on the same images."""
    means: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(averaged_metrics()))
    """Of the other alignment metrics; each an entry of its own in `scores.json`."""
    ceiling: float | None = None
    """Mean Spearman between people; None: nothing is divided."""
    n_scored: int | None = None
    """Images that `alignment` is a mean of; in no file where there are no human maps."""
    n_degenerate: int | None = None

    def figures(self) -> dict[str, Any]:
        """Their part of an entry in `scores.json`."""
        out: dict[str, Any] = {}
        for name in (each.name for each in fields(Figures)):
            if name == "means":
                out |= self.means
            elif name == "measures":
                out[name] = {metric: asdict(found) for metric, found in self.measures.items()}
            elif (name, self.n_scored) != ("n_scored", None):
                out[name] = getattr(self, name)
        return out


@dataclass(kw_only=True)
class Score(Figures):
    """The figures of one checkpoint, explainer and protocol, and whose they are."""

    checkpoint: str
    explainer: str | None
    protocol: str | None
    """None where there are no human maps."""
    facts: MeasuredFacts
    seconds_per_image: float | None
    """Wall time as if the explainer ran alone."""
    seconds_per_image_shared: float | None
    """The part of it that the explainers at the layer share."""

    def entry(self, run: RunFacts) -> dict[str, Any]:
        """Its entry in `scores.json`."""
        return {
            "checkpoint": self.checkpoint,
            **self.facts.entry(),
            "explainer": self.explainer,
            "protocol": self.protocol,
            "seconds_per_image": self.seconds_per_image,
            "seconds_per_image_shared": self.seconds_per_image_shared,
            **self.figures(),
            **asdict(run),
        }

    @property
    def note(self) -> str | None:
        """What a reader of this explainer's figures must know."""
        return None if self.explainer is None else self.facts.explainer_notes.get(self.explainer)


@dataclass(kw_only=True)
class Gain:
    """A paired comparison over the images that both checkpoints are scored on: second minus first."""

    difference: float | None
    """Of the alignments."""
    interval: list[float] | None
    """95 %, bootstrap over images."""
    wilcoxon_p: float | None
    """Two-sided signed-rank test; None when no pair differs."""
    improved: float | None
    """Share of images with a higher value, 0..1; ties count half."""
    n_pairs: int


@dataclass(kw_only=True)
class Comparison(Gain):
    """Two checkpoints under one explainer and protocol."""

    first: str
    second: str
    explainer: str
    protocol: str
    holm_p: float | None = None
    """`wilcoxon_p`, corrected over the pairs of one explainer and protocol."""
    verdict: str = ""
    explainer_note: str | None = None

    def entry(self) -> dict[str, Any]:
        """Its entry in `comparisons.json`."""
        whose = {name: getattr(self, name) for name in ("first", "second", "explainer", "protocol")}
        return whose | asdict(self)
