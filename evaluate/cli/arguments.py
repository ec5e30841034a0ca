"""The options of `python -m evaluate`."""

from __future__ import annotations

from pathlib import Path

from common.arguments import Adding, ArgumentParser
from common.workers import MOST
from evaluate.cli.options import (
    METHOD,
    add_compile_option,
    add_explainer_option,
    add_layer_option,
    add_model_options,
    add_out_options,
)
from evaluate.data.registry import typed_names
from evaluate.explainers.registry import EXPLAINERS
from evaluate.maps.frames import PROTOCOLS
from evaluate.metrics.registry import MEASURES
from evaluate.run.options import DEFAULT_EXPLAINERS
from evaluate.studies.registry import STUDIES

CKPT_HELP = (
    "folder written by train; .pth/.pth.tar/.safetensors file (with --model); zenodo:NAME; timm:TAG; "
    "hf-hub:ORG/NAME; untrained (with --model): random weights as a baseline"
)

BOUNDS = {
    "limit": (1, 10**12), "batch_size": (1, 2**20), "micro_batch": (1, 2**20), "workers": (0, MOST),
    "seed": (0, 2**63 - 1),
}  # fmt: skip
"""Least and most of the options that are numbers."""


def parser() -> ArgumentParser:
    """The options of `python -m evaluate`."""
    p = ArgumentParser(
        prog="python -m evaluate",
        description="Measure how human a checkpoint's attention is.",
        epilog="python -m evaluate explain IMAGE... explains your own photographs. Options of several values may be "
        "given several times; the values add up.",
    )
    what = p.add_argument_group("what is measured")
    named = f"{CKPT_HELP}. NAME=CKPT gives it a name for tables, --model and --compare"
    what.add_argument("--ckpt", nargs="+", action=Adding, default=[], metavar="[NAME=]CKPT", help=named)
    add_model_options(what, "+")
    study = "every model of the study instead of --ckpt, plain against DCLS"
    what.add_argument("--study", type=STUDIES.find, metavar=f"{{{','.join(STUDIES)}}}", help=study)
    what.add_argument("--weights-dir", type=Path, help="--study: folder of weight files to take before any download")
    what.add_argument("--dry-run", action="store_true", help="--study: print what would be downloaded and computed")
    names = f"default: %(default)s; there are {', '.join(typed_names())}"
    what.add_argument("--data", default="clickme", metavar="NAME", help=names)
    what.add_argument("--data-root", type=Path, help="folder of the data set; where a relative PATTERN starts")
    what.add_argument("--labels", type=Path, help="imagefolder: CSV with columns file, label (no class folders)")
    what.add_argument("--limit", type=int, help="a seeded random subset of so many images; scores are marked partial")
    how = p.add_argument_group("how")
    add_explainer_option(how, list(DEFAULT_EXPLAINERS.values()), EXPLAINERS)
    protocols = "default: paper (with --study both)"
    how.add_argument("--protocol", nargs="+", action=Adding, choices=PROTOCOLS, default=[], help=protocols)
    add_layer_option(how)
    how.add_argument("--target", choices=("label", "predicted"), default="label", help="class that is explained")
    further = f"further metrics of each explainer: {', '.join(MEASURES)}"
    how.add_argument("--metric", nargs="+", action=Adding, type=MEASURES.find, default=[], metavar=METHOD, help=further)
    how.add_argument("--micro-batch", type=int, help="images at once where many passes are needed; adapts to memory")
    pair = "paired comparison of two checkpoints by their names in the table, B minus A; repeatable"
    how.add_argument("--compare", nargs=2, action="append", default=[], metavar=("A", "B"), help=pair)
    add_out_options(how)
    size = "default: 8 on a CPU, where it is fastest, 32 on a GPU; adapts to memory"
    how.add_argument("--batch-size", type=int, help=size)
    how.add_argument("--workers", type=int, help="processes that read pictures (default: 2 on a CPU, more on a GPU)")
    how.add_argument("--skip-bad", action="store_true", help="leave out and list images that cannot be read")
    how.add_argument("--seed", type=int, default=0, help="of --limit, the bootstrap and untrained weights")
    how.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the features; the head is fp32")
    add_compile_option(how)
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return p
