"""`python -m evaluate explain IMAGE ...`: saliency maps of one's own photographs, as arrays and as pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from common.atomic import atomic_file
from common.errors import UserError
from evaluate.data import imagenet_names, open_image
from evaluate.explainers import EXPLAINERS, parse_method
from evaluate.explanation import explain
from evaluate.options import add_layer_option, add_model_options, model_args
from evaluate.overlays import overlay
from evaluate.processes import start_processes
from evaluate.subjects import load_subject

CELL, TITLE = 200, 34  # pixels of the contact sheet


def parser() -> argparse.ArgumentParser:
    """The options of `python -m evaluate explain`."""
    p = argparse.ArgumentParser(prog="python -m evaluate explain", description="Explain your own photographs.")
    p.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    p.add_argument("--ckpt", required=True, help="as of python -m evaluate")
    add_model_options(p)
    p.add_argument("--explainer", nargs="+", default=["grad_cam"], help=f"of {', '.join(EXPLAINERS)}")
    p.add_argument("--target", type=int, help="class index that is explained (default: the predicted class)")
    add_layer_option(p)
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
    stems = [path.stem for path in args.images]
    if len(set(stems)) < len(stems):
        raise UserError("two photographs bear the same name; results are named by it, so rename one of them")
    photographs = [open_image(path) for path in args.images]
    device = start_processes(args.device).device
    subject = load_subject(args.ckpt, args.model, model_args(args.model_arg))
    if args.target is not None and not 0 <= args.target < subject.num_classes:
        raise UserError(f"--target {args.target}: the model has classes 0 to {subject.num_classes - 1}")
    subject.to(device)
    names = imagenet_names() if subject.num_classes == 1000 else [str(i) for i in range(subject.num_classes)]

    geometry = subject.transform.geometry()
    pixels = torch.stack([geometry(photograph) for photograph in photographs])
    images = subject.transform.normalise(pixels.to(device)).contiguous(memory_format=torch.channels_last)
    target = None if args.target is None else torch.full((len(images),), args.target, device=device)
    maps = explain(
        subject.model, images, target, args.explainer, layer=args.layer, transform=subject.transform, size="image"
    )
    rows = []
    for number, stem in enumerate(stems):
        print(f"{args.images[number]}\n{_top5(maps.logits[number], names)}")
        cells = [("seen", Image.fromarray(pixels[number].permute(1, 2, 0).contiguous().numpy()))]
        for name, values in maps.items():
            file = f"{stem}-{name.replace(':', '-').replace('=', '')}"
            saliency = values[number].cpu()
            with atomic_file(args.out / f"{file}.npy") as temporary, temporary.open("wb") as handle:
                np.save(handle, saliency.numpy())
            picture = overlay(pixels[number], saliency)
            with atomic_file(args.out / f"{file}.png") as temporary:
                picture.save(temporary, "PNG")
            note = maps.explainers[name].note
            constant = ", constant" if maps.degenerate[name][number] else ""
            cells.append((f"{name}{constant}" + (f"\n{note}" if note else ""), picture))
        rows.append(cells)
    with atomic_file(args.out / "contact_sheet.png") as temporary:
        contact_sheet(rows).save(temporary, "PNG")
    for name, explainer in maps.explainers.items():
        if explainer.note:
            print(f"{name}: {explainer.note}")
    print(f"maps (.npy), overlays (.png) and contact_sheet.png in {args.out}")
    return 0


def contact_sheet(rows: Sequence[Sequence[tuple[str, Image.Image]]]) -> Image.Image:
    """Pictures with a title each, a row a photograph."""
    sheet = Image.new("RGB", (CELL * max(map(len, rows)), (CELL + TITLE) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, cells in enumerate(rows):
        for x, (title, picture) in enumerate(cells):
            corner = (x * CELL, y * (CELL + TITLE))
            draw.multiline_text((corner[0] + 4, corner[1] + 2), title, fill="black", spacing=1)
            shown = picture.resize((CELL - 4, CELL - 4), Image.Resampling.BICUBIC)
            sheet.paste(shown, (corner[0] + 2, corner[1] + TITLE))
    return sheet


def _top5(logits: Tensor, names: Sequence[str]) -> str:
    probabilities, classes = logits.softmax(0).topk(min(5, len(names)))
    return "\n".join(f"  {p:6.1%}  {c:4d}  {names[c]}" for p, c in zip(probabilities.tolist(), classes.tolist()))
