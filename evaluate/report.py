"""`report.html`: the scores and a gallery of overlays, in one file that opens without a network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.atomic import write_text
from evaluate.data import EvalData, load_batches
from evaluate.overlays import data_uri, overlay
from evaluate.protocols import frame_human_map
from evaluate.runner import Row, RunOptions, saliency_of
from evaluate.subjects import Subject

GALLERY_SIZE = 9

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2rem }
table { border-collapse: collapse }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid var(--line) }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.partial { border-left: 4px solid #d80; padding: .3rem .8rem; background: var(--soft) }
.scroll { overflow-x: auto }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem } small { font-weight: 400; opacity: .7 }
.row { display: flex; flex-wrap: wrap; gap: .6rem; margin-bottom: .6rem }
figure { margin: 0; width: 170px } figure img { width: 170px; height: 170px; display: block; border-radius: 4px }
figcaption { font-size: .8rem; overflow-wrap: anywhere }
code { overflow-wrap: anywhere } dt { font-weight: 600 } dd { margin: 0 0 .4rem 0 }
"""


@dataclass
class GalleryItem:
    """One image of the gallery."""

    index: int
    reason: str
    """Why it is shown: `best`, `median`, `worst` or `sample`."""


@dataclass
class GalleryColumn:
    """One checkpoint's pictures of the gallery's images."""

    checkpoint: str
    pictures: list[Image.Image]
    """What this model saw."""
    human: list[Image.Image] | None
    """Human maps over it."""
    maps: dict[str, list[Image.Image]]
    """Overlays by explainer."""
    labels: list[str]
    """Name of each image's class."""


def choose_gallery(rows: Sequence[Row], size: int = GALLERY_SIZE) -> list[GalleryItem]:
    """Images that show the range: best, median and worst of the first score; the first images without scores."""
    first = rows[0]
    members = [r for r in rows if all(r.get(k) == first.get(k) for k in ("checkpoint", "explainer", "protocol"))]
    scored = sorted((r for r in members if r.get("spearman") is not None), key=lambda r: -r["spearman"])
    if not scored:
        return [GalleryItem(r["index"], "sample") for r in members[:size]]
    third = max(1, size // 3)
    middle = max(0, len(scored) // 2 - third // 2)
    chosen: dict[int, str] = {}
    for reason, part in (
        ("best", scored[:third]),
        ("median", scored[middle : middle + third]),
        ("worst", scored[-third:]),
    ):
        for row in part:
            chosen.setdefault(row["index"], reason)
    return [GalleryItem(index, reason) for index, reason in chosen.items()]


def gallery_column(
    subject: Subject, data: EvalData, gallery: Sequence[GalleryItem], options: RunOptions
) -> GalleryColumn:
    """Pictures of one checkpoint: what it saw, the human map in its field of view, each explainer's overlay."""
    subject.to(options.device)
    indices = [item.index for item in gallery]
    batch = next(load_batches(data, subject.transform, indices, len(indices), 0))
    maps = saliency_of(subject, data, batch, options)
    size = batch.pixels.shape[-1]
    human: Tensor | None = None
    if batch.human is not None:
        seen = subject.transform.crop / subject.transform.resize
        human = frame_human_map(data.human_maps(batch.human), seen, "aligned")
        human = F.interpolate(human[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
    names = data.class_names
    return GalleryColumn(
        subject.name,
        [Image.fromarray(p.permute(1, 2, 0).contiguous().numpy()) for p in batch.pixels],
        None if human is None else [overlay(p, m) for p, m in zip(batch.pixels, human)],
        {name: [overlay(p, m) for p, m in zip(batch.pixels, values)] for name, values in maps.items()},
        [names[label] if names else str(label) for label in batch.labels.tolist()],
    )


def write_report(
    path: Path,
    scores: Sequence[dict[str, Any]],
    gallery: Sequence[GalleryItem],
    columns: Sequence[GalleryColumn],
    rows: Sequence[Row],
    data: EvalData,
) -> None:
    """Write the page, whole or not at all; `rows` give the figures under the pictures."""
    partial = scores[0]["partial"]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>Alignment on {_e(data.name)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Alignment with human attention on {_e(data.name)}</h1>",
        f"<p class='partial'>Partial, not the whole data set: {_e(partial)}.</p>" if partial else "",
        _score_table(scores),
        "<h2>Gallery</h2><p>What each model saw, the human map in its field of view, each explainer's map with its "
        "Spearman correlation. Images are chosen by the first row of the table.</p>",
        *(_card(number, item, columns, rows) for number, item in enumerate(gallery)),
        _provenance(scores[0]),
        "</body></html>",
    ]
    write_text(path, "\n".join(parts))


def _score_table(scores: Sequence[dict[str, Any]]) -> str:
    ceiling = scores[0].get("ceiling")
    unit = f"mean Spearman / {ceiling} (human ceiling)" if ceiling else "mean Spearman"
    head = ("checkpoint", "explainer", "protocol", "alignment", "95 % interval", "top-1 %", "scored", "degenerate")
    body = []
    for item in scores:
        between = item["interval"]
        cells = (
            _figure(item["alignment"]),
            "–" if between is None else f"{between[0]:.4f} to {between[1]:.4f}",
            f"{item['top1']:.2f}",
            str(item.get("n_scored", item["n_images"])),
            str(item.get("n_degenerate", "–")),
        )
        names = (item["checkpoint"], item["explainer"] or "–", item["protocol"] or "–")
        texts = "".join(f"<td>{_e(name)}</td>" for name in names)
        body.append(f"<tr>{texts}{''.join(f'<td class=n>{_e(cell)}</td>' for cell in cells)}</tr>")
    return (
        f"<p>Alignment: {_e(unit)}; interval by the bootstrap over images.</p><div class='scroll'><table><tr>"
        + "".join(f"<th>{_e(h)}</th>" for h in head)
        + "</tr>"
        + "".join(body)
        + "</table></div>"
    )


def _card(number: int, item: GalleryItem, columns: Sequence[GalleryColumn], rows: Sequence[Row]) -> str:
    spearman = {
        (row["checkpoint"], row["explainer"], row["protocol"]): row["spearman"]
        for row in rows
        if row["index"] == item.index and "spearman" in row
    }
    lines = []
    for column in columns:
        figures = [_picture(column.pictures[number], column.checkpoint)]
        if column.human:
            figures.append(_picture(column.human[number], "human"))
        for name, images in column.maps.items():
            values = [f"{_figure(v)} ({p})" for (c, e, p), v in spearman.items() if (c, e) == (column.checkpoint, name)]
            figures.append(_picture(images[number], f"{name} {', '.join(values)}"))
        lines.append(f"<div class='row'>{''.join(figures)}</div>")
    return f"<h3>{_e(columns[0].labels[number])} <small>{_e(item.reason)}</small></h3>{''.join(lines)}"


def _picture(image: Image.Image, caption: str) -> str:
    shown = image.resize((224, 224), Image.Resampling.BICUBIC) if max(image.size) < 224 else image
    return f"<figure><img alt='{_e(caption)}' src='{data_uri(shown)}'><figcaption>{_e(caption)}</figcaption></figure>"


def _provenance(item: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in item["versions"].items())
    facts = {
        "command": item["command"],
        "data": f"{item['data']['name']}, {item['data']['n_images']} images, fingerprint {item['data']['fingerprint']}",
        "precision, device, processes, seed": ", ".join(
            str(item[key]) for key in ("precision", "device", "processes", "seed")
        ),
        "protocol paper": "the human map covers the whole frame, constant maps are left out",
        "protocol aligned": "the human map is cut to the model's field of view, constant maps score 0",
        "versions": versions,
    }
    return (
        "<h2>How it was computed</h2><dl>"
        + "".join(f"<dt>{_e(k)}</dt><dd><code>{_e(v)}</code></dd>" for k, v in facts.items())
        + "</dl>"
    )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _e(text: str) -> str:
    return html.escape(str(text), quote=True)
