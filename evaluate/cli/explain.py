"""`python -m evaluate explain IMAGE ...`: saliency maps of your own images, as arrays and as overlays."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from common.arguments import Adding, ArgumentParser
from common.atomic import atomic_file, write_text
from common.data.decoding import open_image
from common.data.folders import names_of_classes
from common.errors import UserError
from common.text import shown
from common.weights import sha256
from evaluate.cli.claim import claimed, folder_of
from evaluate.cli.contact_sheet import Cells, contact_sheet
from evaluate.cli.explain_arguments import distinct_names, find_class, find_images
from evaluate.cli.options import (
    add_compile_option,
    add_explainer_option,
    add_layer_option,
    add_model_options,
    add_out_options,
)
from evaluate.explainers.explain import Maps, explain
from evaluate.explainers.explainer import Explainer
from evaluate.explainers.registry import EXPLAINERS
from evaluate.maps.overlays import overlay, to_image
from evaluate.named import Chosen
from evaluate.network.micro_batch import MicroBatch
from evaluate.network.requests import labels, read_requests
from evaluate.network.subject import Subject
from evaluate.rows import Question
from evaluate.run.options import RunOptions
from evaluate.run.preflight import misfit_explainers, not_finite, state_digest
from evaluate.run.processes import start_processes

BATCH, ROWS = 16, 100  # photographs explained at once, and on one contact sheet
SLOW = 3  # seconds after which an explainer shows that it goes on
TOLD = "explained.json"

T = TypeVar("T")


def parser() -> ArgumentParser:
    """The options of `python -m evaluate explain`."""
    p = ArgumentParser(prog="python -m evaluate explain", description="Explain your own photographs.")
    p.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a file, or a folder of them")
    p.add_argument("--ckpt", action=Adding, default=[], metavar="CKPT", help="as of python -m evaluate")
    add_model_options(p)
    from_images = [name for name, explainer in EXPLAINERS.items() if not explainer.needs]
    add_explainer_option(p, [EXPLAINERS.find("grad_cam")], from_images)
    target = "class that is explained, by its index or its name (default: the predicted class)"
    p.add_argument("--target", metavar="CLASS", help=target)
    add_layer_option(p)
    p.add_argument("--micro-batch", type=int, help="images at once where many passes are needed; adapts to memory")
    add_compile_option(p)
    add_out_options(p)
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return p


def main(argv: Sequence[str]) -> int:
    """Explain the photographs the command line names.

    Returns:
        0, or 2 where a photograph does not decode or an explainer does not fit the model, which is listed.

    Raises:
        UserError: a photograph, the checkpoint or the class is not there, or nothing of what was asked for can be done.
    """
    args = parser().parse_args(argv)
    if args.micro_batch is not None and not 1 <= args.micro_batch <= 2**20:
        raise UserError(f"--micro-batch {args.micro_batch}: must be at least 1 and at most {2**20:,}")
    if len(args.ckpt) != 1:
        raise UserError(f"explain takes one --ckpt, {len(args.ckpt)} are given; explain with each model in turn")
    files = distinct_names(find_images(args.images))
    device = start_processes(args.device).device
    requests = read_requests(args.ckpt, args.model, args.model_arg)
    subject = requests[0].load(0, *labels(requests))
    names = names_of_classes(subject.num_classes, subject.classes)
    target = None if args.target is None else find_class(args.target, subject.num_classes, names)
    subject.to(device)
    asked = {chosen.label: chosen for chosen in args.explainer}
    options = RunOptions(asked, device=device, layer=args.layer, compile=args.compile)
    if reason := not_finite(subject, options):
        raise UserError(reason)
    misfits = misfit_explainers(subject, asked, options)
    lacking = [f"{name}: {reason}" for name, reason in misfits.items()]
    explainers = {label: chosen for label, chosen in asked.items() if label not in misfits}
    if not explainers:
        raise UserError("\n  ".join(lacking))
    question = _question(subject, files, options, target)
    if options.compile:
        subject.compile()

    out = args.out or folder_of(question, "explain", subject.name)
    written = _written(files, explainers)
    command = shlex.join(["python", "-m", "evaluate", "explain", *argv])
    job = Job(subject, explainers, options, target, names or [str(n) for n in range(subject.num_classes)], out)
    kept = ("*.npy", f"the maps written so far are kept in {out}")
    with claimed(out, question, command, written, args.overwrite, kept):
        rows, told = job.explain(files, args.micro_batch, lacking)
        write_text(out / TOLD, json.dumps(told, indent=2) + "\n")
        for start in range(0, len(rows), ROWS):
            with atomic_file(out / _sheet(start)) as temporary:
                contact_sheet(rows[start : start + ROWS]).save(temporary, "PNG")
    notes = {entry["explainer"]: entry["note"] for image in told for entry in image["maps"] if entry["note"]}
    for name, note in notes.items():
        print(f"{name}: {note}")
    print(f"maps (.npy), overlays (.png), {TOLD} and contact_sheet.png in {out}")
    if lacking:
        print(shown("error: not explained:\n  " + "\n  ".join(lacking)), file=sys.stderr)
    return 2 if lacking else 0


def _question(subject: Subject, files: Mapping[str, Path], options: RunOptions, target: int | None) -> Question:
    return {
        "checkpoint": subject.name,
        "weights": subject.weights_sha256 or state_digest(subject),
        "model": subject.model_name,
        "transform": str(subject.transform),
        "images": [f"{path.resolve()} {sha256(path)[:16]}" for path in files.values()],
        "explainers": list(options.explainers),
        "target": target,
        "layer": options.layer,
        "compile": options.compile,
        "device": options.device.type,
    }


def _written(files: Collection[str], explainers: Collection[str]) -> list[str]:
    """Files that may be written."""
    stems = [_stem(file, explainer) for file in files for explainer in explainers]
    sheets = [_sheet(start) for start in range(0, len(files), ROWS)]
    return [TOLD, *sheets, *(f"{stem}.{kind}" for stem in stems for kind in ("npy", "png"))]


def _sheet(start: int) -> str:
    """The contact sheet whose first row is this one of all."""
    return f"contact_sheet{f'_{start // ROWS + 1}' if start else ''}.png"


def _stem(file: str, explainer: str) -> str:
    """What the files of one explainer's map of one photograph are called."""
    return f"{file}-{explainer.replace(':', '-').replace('=', '')}"


class ShownBatch(MicroBatch):
    """Counts its passes on a bar."""

    def __init__(self, size: int | None, device: torch.device, bar: tqdm[Any]) -> None:
        super().__init__(size, device)
        self.bar = bar

    def pieces(self, count: int, work: Callable[[slice], T], cost: int = 1) -> list[T]:
        """See `MicroBatch.pieces`."""

        def counted(rows: slice) -> T:
            found = work(rows)
            self.bar.update(rows.stop - rows.start)
            return found

        return super().pieces(count, counted, cost)


@dataclass(frozen=True)
class Job:
    """How photographs are explained, and where the results go."""

    subject: Subject
    explainers: Mapping[str, Chosen[Explainer]]
    options: RunOptions
    target: int | None
    """Class that is explained; None: the predicted one."""
    names: Sequence[str]
    """Of the classes."""
    out: Path

    def explain(
        self, files: Mapping[str, Path], micro_batch: int | None, lacking: list[str]
    ) -> tuple[list[Cells], list[dict[str, Any]]]:
        """Explain photographs and write their maps.

        Args:
            files: by what the results are called.
            micro_batch: images at once where many passes are needed.
            lacking: receives what is wrong with files that do not decode.

        Returns:
            For each photograph a row of the contact sheet, and what is told of it.

        Raises:
            UserError: none of them decodes.
        """
        done: list[tuple[Cells, dict[str, Any]]] = []
        left, fitting = list(files.items()), MicroBatch(BATCH, self.options.device)
        with tqdm(desc="explaining", unit=" passes", leave=False, disable=None, delay=SLOW) as bar:
            shown = ShownBatch(micro_batch, self.options.device, bar)
            while left:
                batch, left = left[:BATCH], left[BATCH:]
                bar.set_description_str(
                    f"explaining {len(files) - len(left)} of {len(files)} photographs", refresh=False
                )
                opened = list(self._opened(batch, lacking))
                for part in fitting.pieces(len(opened), partial(self._explain_some, opened, shown)):
                    done += part
        if not done:
            raise UserError("\n  ".join(lacking))
        return [row for row, _ in done], [told for _, told in done]

    def _opened(self, files: Iterable[tuple[str, Path]], lacking: list[str]) -> Iterator[tuple[str, Path, Tensor]]:
        """Name, path and what the model sees (3, crop, crop) of each file that decodes."""
        geometry = self.subject.transform.geometry()
        for name, path in files:
            try:
                yield name, path, geometry(open_image(path))
            except UserError as error:
                lacking.append(str(error))

    def _explain_some(
        self, opened: Sequence[tuple[str, Path, Tensor]], micro_batch: MicroBatch, rows: slice
    ) -> list[tuple[Cells, dict[str, Any]]]:
        """Explain a batch, or as much of it as fits into memory."""
        pixels = torch.stack([seen for _, _, seen in opened[rows]]).to(self.options.device)
        maps = explain(
            self.subject.model,
            self.subject.see(pixels),
            self.target,
            self.explainers,
            layer=self.options.layer,
            transform=self.subject.transform,
            micro_batch=micro_batch,
        )
        found = []
        for number, (name, path, seen) in enumerate(opened[rows]):
            best = _top5(maps.logits[number], self.names)
            tqdm.write(shown("\n".join([str(path), *(f"  {p:6.1%}  {c:4d}  {called}" for p, c, called in best)])))
            explained = best[0][1] if self.target is None else self.target
            cells, entries = _write_maps(self.out, name, seen, maps, number)
            told = {
                "image": str(path),
                "explained_class": explained,
                "layer": self.options.layer,
                "top5": [{"class": c, "name": called, "probability": p} for p, c, called in best],
                "maps": entries,
            }
            found.append(([(f"seen; explained: {self.names[explained]}", to_image(seen)), *cells], told))
        return found


def _write_maps(out: Path, called: str, pixels: Tensor, maps: Maps, number: int) -> tuple[Cells, list[dict[str, Any]]]:
    """Array and overlay of each explainer for one photograph; its row of the contact sheet and of `explained.json`."""
    cells: Cells = []
    entries: list[dict[str, Any]] = []
    for name, values in maps.items():
        file, saliency = _stem(called, name), values[number].cpu()
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


def _top5(logits: Tensor, names: Sequence[str]) -> list[tuple[float, int, str]]:
    """Probability, class and name of the likeliest classes."""
    probabilities, classes = logits.softmax(0).topk(min(5, len(names)))
    return [(p, c, names[c]) for p, c in zip(probabilities.tolist(), classes.tolist())]
