"""From measured rows to the files in the folder of results, and to what the terminal shows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from common.atomic import file_name
from common.text import shown
from common.versions import library_versions
from evaluate.network.requests import Checkpoints
from evaluate.report.charts import figure_files, write_figures
from evaluate.report.gallery import choose_gallery
from evaluate.report.page import write_report
from evaluate.report.tables import plain_table, terminal_tables
from evaluate.rows import RunFacts
from evaluate.run.engine import Evaluation
from evaluate.run.options import RunOptions
from evaluate.run.pictures import GalleryColumn, gallery_column
from evaluate.run.preflight import Plan
from evaluate.scores.comparisons import judged_pairs
from evaluate.scores.files import write_scores, write_tensorboard
from evaluate.scores.groups import Group, GroupKey, collect
from evaluate.scores.scores import Results, make_scores

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
    figures = figure_files(list(options.explainers), options.protocols, checkpoints, list(options.measures))
    events = [f"tensorboard/{file_name(name)}" for name in checkpoints]
    return [*FILES, *(f"figures/{name}" for name in figures), *events]


def write_results(
    run: Run, options: RunOptions, checkpoints: Checkpoints, plans: Sequence[Plan], result: Evaluation
) -> None:
    """Scores, comparisons, pictures, report: on the main process, once every row is there."""
    groups: dict[GroupKey, Group] = {}
    for store in result.stores:
        groups |= collect(store.tables(), list(options.measures))
    ceiling = result.data.ceiling
    scores = make_scores(groups, result.checkpoints, ceiling, run.seed)
    results = Results(
        run=_facts(run, options, result),
        data=scores[0].facts.data,
        ceiling=ceiling,
        has_human_maps=result.data.has_human_maps,
        metrics=tuple(options.measures),
        scores=scores,
        comparisons=judged_pairs(groups, run.pairs, scores, ceiling, run.seed),
    )
    write_scores(run.out, results)

    gallery = choose_gallery(groups, run.pairs)
    columns = _pictures([item.index for item in gallery], checkpoints, plans, result, options)
    charts = write_figures(run.out / "figures", results)
    write_report(run.out, results, groups, gallery, columns, charts)
    write_tensorboard(run.out / "tensorboard", scores)
    _show(run.out, results)


def _facts(run: Run, options: RunOptions, result: Evaluation) -> RunFacts:
    return RunFacts(
        partial=result.partial,
        lacking=list(run.lacking),
        precision="bf16" if options.bf16 else "fp32",
        compile=options.compile,
        device=str(options.device),
        processes=run.processes,
        seed=run.seed,
        command=run.command,
        versions=library_versions(),
        layer=options.layer or "the last feature map (class-token transformers: the last block's first norm)",
        target=options.target,
    )


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


def _show(out: Path, results: Results) -> None:
    """What people see at the end."""
    first, *others = map(plain_table, terminal_tables(results))
    partial = f"\nPARTIAL: {results.run.partial}" if results.run.partial else ""
    print("\n\n".join([first + partial, *others]))
    print(f"scores, per-image table and report: {out}/scores.json, per_image.parquet, report.html")
    if results.run.lacking:
        print(shown("error: not measured:\n  " + "\n  ".join(results.run.lacking)), file=sys.stderr)
