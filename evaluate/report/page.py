"""`report.html`, one file that opens without a network, and `report.md` with the same tables."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from common.atomic import write_text
from common.text import one_line
from evaluate.maps.overlays import data_uri
from evaluate.report.charts import Chart
from evaluate.report.gallery import GalleryItem
from evaluate.report.markdown import markdown_page
from evaluate.report.tables import SECONDS_HEADING, Ranked, Table, report_tables
from evaluate.rows import Score, common_notes
from evaluate.run.pictures import GalleryColumn
from evaluate.scores.groups import Group, GroupKey
from evaluate.scores.scores import Results

BREAKS, BREAK = r"(?<=\w)([:,_])", r"\1<wbr>"
"""Where a long heading may be broken."""


GALLERY_ALIGNED = (
    "What a model saw, the human map in its field of view, and each explainer's map with its Spearman correlation by "
    "protocol. Images are chosen by the first score."
)


GALLERY_PLAIN = "What a model saw, and each explainer's map; the first images."


ASSETS = Path(__file__).parent / "assets"


def write_report(
    out: Path,
    results: Results,
    groups: dict[GroupKey, Group],
    gallery: Sequence[GalleryItem],
    columns: Sequence[GalleryColumn],
    charts: Sequence[Chart],
) -> None:
    """Write `report.html` and `report.md` into the folder `out`, each whole or not at all.

    Args:
        out: folder of the results.
        results: of the run.
        groups: the rows, for the figures under the pictures.
        gallery: which images are shown.
        columns: their pictures, by checkpoint.
        charts: see `evaluate.report.charts`.
    """
    tables = report_tables(results)
    title, provenance = _title(results), _provenance(results)
    partial, lacking = results.run.partial, results.run.lacking
    body = [
        f"<h1>{_e(title)}</h1>",
        f"<p class='partial'>Partial, not the whole data set: {_e(partial)}.</p>" if partial else "",
        *(f"<p class='partial'>Not measured: {_e(text)}</p>" for text in lacking),
        _filters(results.scores),
        "<p>Per-image rows: <a href='per_image.parquet'>per_image.parquet</a>; scores: "
        "<a href='scores.json'>scores.json</a>, <a href='scores.csv'>scores.csv</a>.</p>",
        *(_html_table(table) for table in tables),
        *(f"<figure class='chart' data-explainers='{_e(c.explainer)}'>{c.svg}</figure>" for c in charts),
        f"<h2>Gallery</h2><p>{GALLERY_ALIGNED if results.has_human_maps else GALLERY_PLAIN}</p>",
        *(_card(number, item, columns, groups) for number, item in enumerate(gallery)),
        "<h2>How it was computed</h2><dl>",
        *(f"<dt>{_e(key)}</dt><dd>{_e(value)}</dd>" for key, value in provenance.items()),
        "</dl>",
    ]
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{_e(title)}</title><link rel='icon' href='data:,'>"
        f"<style>{(ASSETS / 'report.css').read_text()}</style></head><body>"
        + "\n".join(body)
        + f"<script>{(ASSETS / 'report.js').read_text()}</script></body></html>"
    )
    write_text(out / "report.html", page)
    write_text(out / "report.md", markdown_page(title, partial, lacking, tables, provenance))


def _title(results: Results) -> str:
    what = "Alignment with human attention" if results.has_human_maps else "Evaluation without human maps"
    return f"{what}: {results.data.name}"


def _html_table(table: Table) -> str:
    title, head, rows = table
    checkpoints = {"checkpoint", "first", "second", "model"}
    places = [number for number, name in enumerate(head) if name in checkpoints]
    explainer = head.index("explainer")
    lines = []
    for row in rows:
        names = " ".join(row[place] for place in places)
        cells = "".join(map(_cell, row))
        lines.append(
            f"<tr data-checkpoints='{'&#10;'.join(_e(row[p]) for p in places)}' data-explainers='{_e(row[explainer])}' "
            f"title='{_e(names)}'>{cells}</tr>"
        )
    header = "".join(f"<th>{re.sub(BREAKS, BREAK, _e(name))}</th>" for name in head)
    return f"<h2>{_e(title)}</h2><div class='scroll'><table><tr>{header}</tr>{''.join(lines)}</table></div>"


def _cell(text: str) -> str:
    """A figure's rank stands small behind it; the first of its column is bold."""
    kind = " class='n'" if text[:1].isdigit() or text[:2] in {"+0", "-0"} else ""
    if not isinstance(text, Ranked):
        return f"<td{kind}>{_e(text)}</td>"
    value = f"<b>{_e(text.value)}</b>" if text.rank == 1 else _e(text.value)
    return f"<td{kind}>{value} <small title='rank {text.rank}'>{text.rank}</small></td>"


def _filters(scores: Sequence[Score]) -> str:
    def boxes(kind: str, all_names: Iterable[str | None]) -> str:
        names = filter(None, dict.fromkeys(all_names))
        inputs = (f"<label><input type='checkbox' checked data-{kind}='{_e(n)}'> {_e(n)}</label>" for n in names)
        return f"<fieldset><legend>{kind}</legend>{''.join(inputs)}</fieldset>"

    checkpoints = boxes("checkpoint", (item.checkpoint for item in scores))
    return f"<form id='filters'>{checkpoints}{boxes('explainer', (item.explainer for item in scores))}</form>"


def _card(number: int, item: GalleryItem, columns: Sequence[GalleryColumn], groups: dict[GroupKey, Group]) -> str:
    shown: set[str] = set()
    parts = [f"<h3>{_e(columns[0].labels[number])} <small>{_e(item.reason)}, image {item.index}</small></h3>"]
    for column in columns:
        pictures = []
        if column.geometry not in shown:
            shown.add(column.geometry)
            pictures.append(_picture(column.pictures[number], "seen"))
            if column.human:
                pictures.append(_picture(column.human[number], "human"))
            parts.append(_row("", "".join(pictures)))
        maps = "".join(
            _picture(images[number], name + _spearman(groups, column.checkpoint, name, item.index), name)
            for name, images in column.maps.items()
        )
        parts.append(_row(column.checkpoint, maps))
    return f"<section>{''.join(parts)}</section>"


def _row(checkpoint: str, pictures: str) -> str:
    attribute = f" data-checkpoints='{_e(checkpoint)}'" if checkpoint else ""
    return f"<div class='row'{attribute}><p>{_e(checkpoint)}</p><div class='maps'>{pictures}</div></div>"


def _spearman(groups: dict[GroupKey, Group], checkpoint: str, explainer: str, index: int) -> str:
    """Caption of a map: its correlations, or nothing where there are no human maps."""
    texts = []
    for (name, method, protocol), group in groups.items():
        if (name, method) == (checkpoint, explainer) and protocol is not None:
            value = float(group.spearman[group.index == index][0])
            texts.append(f" {'constant' if value != value else format(value, '.3f')} ({protocol})")
    return ",".join(texts)


def _picture(image: Image.Image, caption: str, explainer: str = "") -> str:
    attribute = f" data-explainers='{_e(explainer)}'" if explainer else ""
    return (
        f"<figure{attribute}><img loading='lazy' alt='{_e(caption)}' src='{data_uri(image)}'>"
        f"<figcaption>{_e(caption)}</figcaption></figure>"
    )


def _provenance(results: Results) -> dict[str, str]:
    run, data, scores = results.run, results.data, results.scores
    first = scores[0]
    notes = common_notes({s.checkpoint: s.facts.explainer_notes for s in scores})
    alignment = {
        "protocol paper": "the human map covers the whole frame; images with a constant map are left out",
        "protocol aligned": "the human map is cut to the model's field of view; images with a constant map score 0",
        "interval": "95 %, percentile bootstrap over images, 10,000 resamples, seed " + str(run.seed),
        "p-values": "Wilcoxon signed-rank, two-sided; Holm over the pairs of one explainer and protocol",
    }
    return {
        "command": run.command,
        "data": f"{data.name}, {first.n_images} of {data.n_images} images, fingerprint {data.fingerprint}",
        "checkpoints": "; ".join(
            f"{name}: {facts.model}, weights SHA-256 {facts.weights_sha256[:16]}"
            for name, facts in {s.checkpoint: s.facts for s in scores}.items()
        ),
        "explained layer": run.layer,
        "explained class": "the image's label" if run.target == "label" else "the predicted one",
        **{f"explainer {name}": note for name, note in notes.items()},
        **{
            f"measure {name}": f"{found.better} is better; {found.settings}; {found.defined} images"
            for name, found in first.measures.items()
        },
        **(alignment if results.has_human_maps else {}),
        "precision, device, processes": f"{run.precision}, {run.device}, {run.processes}",
        SECONDS_HEADING: (
            f"wall time of an explainer as if it ran alone ({run.device}, {run.precision}, "
            f"CPU threads: {first.facts.threads}, batches of up to {first.facts.batch_size}), "
            "without reading pictures and without measures; the pass that gives features, gradients and logits is "
            "timed once, as all explainers at the layer share it, and counted in for each of them"
        ),
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }


def _e(text: str) -> str:
    return html.escape(one_line(text), quote=True)
