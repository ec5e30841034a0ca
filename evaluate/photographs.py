"""`python -m evaluate explain IMAGE ...`: saliency maps of one's own photographs, as arrays and as pictures."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from common.atomic import atomic_file, write_text
from common.errors import UserError
from evaluate.data import names_of_classes, open_image
from evaluate.explainers import EXPLAINERS, MicroBatch, parse_method, with_warning
from evaluate.explanation import Maps, explain
from evaluate.options import add_compile_option, add_layer_option, add_model_options, model_args
from evaluate.overlays import overlay, to_image
from evaluate.processes import start_processes
from evaluate.subjects import load_subject

CELL, LINE, LETTERS = 200, 13, 36  # of the contact sheet: pixels of a picture and of a line, letters in a line
BATCH = 16  # photographs explained at once


def parser() -> argparse.ArgumentParser:
    """The options of `python -m evaluate explain`."""
    p = argparse.ArgumentParser(prog="python -m evaluate explain", description="Explain your own photographs.")
    p.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    p.add_argument("--ckpt", required=True, help="as of python -m evaluate")
    add_model_options(p)
    known = ", ".join(map(with_warning, EXPLAINERS))
    p.add_argument("--explainer", nargs="+", default=["grad_cam"], help=f"of {known}")
    p.add_argument("--target", type=int, help="class index that is explained (default: the predicted class)")
    add_layer_option(p)
    p.add_argument("--micro-batch", type=int, help="images at once where many passes are needed; adapts to memory")
    add_compile_option(p)
    p.add_argument("--out", type=Path, default=Path("results/explain"), help="folder of results (%(default)s)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return p


def main(argv: Sequence[str]) -> int:
    """Explain the photographs the command line names; returns 0.

    Raises:
        UserError: a photograph, the checkpoint or an explainer is not to be had.
    """
    args = parser().parse_args(argv)
    for text in args.explainer:
        parse_method(text)
    if args.micro_batch is not None and args.micro_batch < 1:
        raise UserError(f"--micro-batch {args.micro_batch}: must be at least 1")
    stems = [path.stem for path in args.images]
    if len(set(stems)) < len(stems):
        raise UserError("two photographs bear the same name; results are named by it, so rename one of them")
    photographs = [open_image(path) for path in args.images]
    device = start_processes(args.device).device
    subject = load_subject(args.ckpt, args.model, model_args(args.model_arg))
    if args.target is not None and not 0 <= args.target < subject.num_classes:
        raise UserError(f"--target {args.target}: the model has classes 0 to {subject.num_classes - 1}")
    subject.to(device)
    if args.compile:
        subject.compile()
    names = names_of_classes(subject.num_classes, subject.classes) or [str(i) for i in range(subject.num_classes)]

    micro_batch = MicroBatch(args.micro_batch, device)
    rows, told = [], []
    for start in range(0, len(stems), BATCH):
        part = slice(start, start + BATCH)
        pixels = torch.stack([subject.transform.geometry()(photograph) for photograph in photographs[part]])
        images = subject.transform.normalise(pixels.to(device)).contiguous(memory_format=torch.channels_last)
        target = None if args.target is None else torch.full((len(images),), args.target, device=device)
        maps = explain(
            subject.model,
            images,
            target,
            args.explainer,
            layer=args.layer,
            transform=subject.transform,
            micro_batch=micro_batch,
        )
        for number, (path, stem) in enumerate(zip(args.images[part], stems[part])):
            best = _top5(maps.logits[number], names)
            print(path, *(f"  {p:6.1%}  {c:4d}  {name}" for p, c, name in best), sep="\n")
            explained = best[0][1] if args.target is None else args.target
            cells, entries = _write_maps(args.out, stem, pixels[number], maps, number)
            rows.append([(f"seen; explained: {names[explained]}", to_image(pixels[number])), *cells])
            told.append(
                {
                    "image": str(path),
                    "explained_class": explained,
                    "layer": args.layer,
                    "top5": [{"class": c, "name": name, "probability": p} for p, c, name in best],
                    "maps": entries,
                }
            )
    write_text(args.out / "explained.json", json.dumps(told, indent=2) + "\n")
    with atomic_file(args.out / "contact_sheet.png") as temporary:
        contact_sheet(rows).save(temporary, "PNG")
    for name, note in maps.notes.items():
        print(f"{name}: {note}")
    print(f"maps (.npy), overlays (.png), explained.json and contact_sheet.png in {args.out}")
    return 0


Cells = list[tuple[str, Image.Image]]


def _write_maps(out: Path, stem: str, pixels: Tensor, maps: Maps, number: int) -> tuple[Cells, list[dict[str, Any]]]:
    """Array and overlay of each explainer for one photograph; its row of the contact sheet and of `explained.json`."""
    cells: Cells = []
    entries: list[dict[str, Any]] = []
    for name, values in maps.items():
        file, saliency = f"{stem}-{name.replace(':', '-').replace('=', '')}", values[number].cpu()
        constant, note = bool(maps.degenerate[name][number]), maps.notes.get(name, "")
        with atomic_file(out / f"{file}.npy") as temporary, temporary.open("wb") as handle:
            np.save(handle, saliency.numpy())
        picture, about = overlay(pixels, saliency), PngInfo()
        about.add_text("Explainer", f"{name}; {note}" if note else name)
        with atomic_file(out / f"{file}.png") as temporary:
            picture.save(temporary, "PNG", pnginfo=about)
        cells.append((f"{name.replace(',', ', ')}{', constant' * constant}" + (f"\n{note}" if note else ""), picture))
        entries.append({"explainer": name, "array": f"{file}.npy", "constant": constant, "note": note})
    return cells, entries


def contact_sheet(rows: Sequence[Sequence[tuple[str, Image.Image]]]) -> Image.Image:
    """Pictures with a title each, wrapped to their width, a row a photograph."""
    titles = [["\n".join(_wrapped(title)) for title, _ in cells] for cells in rows]
    head = LINE * (max(title.count("\n") for row in titles for title in row) + 1) + 4
    sheet = Image.new("RGB", (CELL * max(map(len, rows)), (CELL + head) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, cells in enumerate(rows):
        for x, (_, picture) in enumerate(cells):
            left, top = x * CELL, y * (CELL + head)
            draw.multiline_text((left + 4, top + 2), titles[y][x], fill="black", spacing=1)
            sheet.paste(picture.resize((CELL - 4, CELL - 4), Image.Resampling.BICUBIC), (left + 2, top + head))
    return sheet


def _wrapped(title: str) -> list[str]:
    return [part for line in title.split("\n") for part in textwrap.wrap(line, LETTERS)]


def _top5(logits: Tensor, names: Sequence[str]) -> list[tuple[float, int, str]]:
    """Probability, class and name of the likeliest classes."""
    probabilities, classes = logits.softmax(0).topk(min(5, len(names)))
    return [(p, c, names[c]) for p, c in zip(probabilities.tolist(), classes.tolist())]
