"""From measured rows to the files in the folder of results, and to what the terminal shows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.atomic import file_name
from common.text import shown
from common.versions import library_versions
from evaluate.network.requests import Checkpoints
from evaluate.report.charts import figure_files, write_figures
from evaluate.report.gallery import choose_gallery
from evaluate.report.page import write_report
from evaluate.report.tables import comparison_table, measure_table, plain_table, score_table
from evaluate.run.engine import Evaluation
from evaluate.run.options import RunOptions
from evaluate.run.pictures import GalleryColumn, gallery_column
from evaluate.run.preflight import Plan
from evaluate.scores.comparisons import judged_pairs
from evaluate.scores.files import write_scores, write_tensorboard
from evaluate.scores.groups import Group, GroupKey, collect
from evaluate.scores.scores import make_scores

FILES = ("per_image.parquet", "scores.json", "scores.csv", "comparisons.json", "report.html", "report.md")
"""What every run may leave in its folder, beside `parts`, figures and TensorBoard's events."""


@dataclass(kw_only=True)
class Run:
    """What is asked of a run beyond the options of measuring."""

    out: Path
    """Folder of results."""
    pairs: Sequence[tuple[str, str]]
    """Checkpoints to compare, first and second."""
    seed: int
    """Of the bootstrap and the subset."""
    command: str
    """As it was typed."""
    processes: int
    """How many measured."""
    lacking: Sequence[str]
    """What could not be measured, and why."""


def files_of_run(checkpoints: Sequence[str], options: RunOptions) -> list[str]:
    """Files and folders that a run may write into its folder."""
    figures = figure_files(options.explainers, options.protocols, checkpoints, options.measures)
    events = [f"tensorboard/{file_name(name)}" for name in checkpoints]
    return [*FILES, *(f"figures/{name}" for name in figures), *events]


def write_results(
    run: Run, options: RunOptions, checkpoints: Checkpoints, plans: Sequence[Plan], result: Evaluation
) -> None:
    """Scores, comparisons, pictures, report: on the main process, once every row is there."""
    groups: dict[GroupKey, Group] = {}
    for store in result.stores:
        groups |= collect(store.tables(), options.measures)
    scores = make_scores(groups, result.checkpoints, _facts(run, options, result), result.data.ceiling, run.seed)
    notes = {name: about["explainer_notes"] for name, about in result.checkpoints.items()}
    comparisons = judged_pairs(groups, run.pairs, scores, notes, result.data.ceiling, run.seed)
    write_scores(run.out, scores, comparisons)

    gallery = choose_gallery(groups, run.pairs)
    columns = _pictures([item.index for item in gallery], checkpoints, plans, result, options)
    charts = write_figures(run.out / "figures", scores)
    write_report(run.out, scores, comparisons, groups, gallery, columns, charts)
    write_tensorboard(run.out / "tensorboard", scores)
    _show(run, scores, comparisons)


def _facts(run: Run, options: RunOptions, result: Evaluation) -> dict[str, Any]:
    """What holds for every score."""
    return {
        "partial": result.partial,
        "lacking": list(run.lacking),
        "precision": "bf16" if options.bf16 else "fp32",
        "compile": options.compile,
        "device": str(options.device),
        "processes": run.processes,
        "seed": run.seed,
        "command": run.command,
        "versions": library_versions(),
        "layer": options.layer or "the last feature map (class-token transformers: the last block's first norm)",
        "target": options.target,
    }


def _pictures(
    indices: Sequence[int],
    checkpoints: Checkpoints,
    plans: Sequence[Plan],
    result: Evaluation,
    options: RunOptions,
) -> list[GalleryColumn]:
    columns = []
    for plan in tqdm(plans, "gallery", unit="checkpoint", leave=False, disable=None):
        if plan.name in result.checkpoints:
            with checkpoints.on(plan.name, options.device) as subject:
                columns.append(gallery_column(subject, plan.data, indices, plan.options))
    return columns


def _show(run: Run, scores: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]]) -> None:
    """What people see at the end."""
    print(score_table(scores))
    if scores[0]["measures"]:
        _, head, rows = measure_table(scores)
        print(f"\n{plain_table(head, rows)}")
    if comparisons:
        print(f"\n{comparison_table(comparisons)}")
    print(f"scores, per-image table and report: {run.out}/scores.json, per_image.parquet, report.html")
    if run.lacking:
        print(shown("error: not measured:\n  " + "\n  ".join(run.lacking)), file=sys.stderr)
