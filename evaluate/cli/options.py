"""Command-line options that several commands share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.arguments import Adding
from evaluate.explainers.explainer import Explainer
from evaluate.explainers.registry import EXPLAINERS, with_warning
from evaluate.named import Chosen

METHOD = "NAME[:KEY=VALUE,...]"


def add_model_options(parser: Any, nargs: str | None = None) -> None:
    """Add `--model` and `--model-arg`, to a parser without positionals with `nargs` of several values."""
    parser.add_argument(
        "--model",
        nargs=nargs,
        action=Adding,
        default=[],
        metavar="[NAME=]MODEL",
        help="architecture of weight files: a zoo name (convnext_t_dcls) or timm:NAME; NAME=MODEL for one of them",
    )
    parser.add_argument(
        "--model-arg",
        nargs=nargs,
        action=Adding,
        default=[],
        metavar="[NAME:]KEY=VALUE",
        help="of --model. A weight file does not tell all of its architecture: weights from TensorFlow, say, need "
        "pad_type=same, and without it they load, classify nearly as well, and have other saliency maps",
    )


def add_explainer_option(parser: Any, default: Sequence[Chosen[Explainer]], known: Iterable[str]) -> None:
    """Add `--explainer` to a parser or a group of one, of which the help names those that are `known`."""
    told = f"default: {' '.join(chosen.label for chosen in default)}; there are {', '.join(map(with_warning, known))}"
    parser.add_argument(
        "--explainer", nargs="+", action=Adding, type=EXPLAINERS.find, default=default, metavar=METHOD, help=told
    )


def add_layer_option(parser: Any) -> None:
    """Add `--layer` to a parser or a group of one."""
    parser.add_argument("--layer", help="name of the module that is explained (default: the last feature map)")


def add_compile_option(parser: Any) -> None:
    """Add `--compile` to a parser or a group of one."""
    told = "torch.compile the network: up to twice as fast where there are many passes, after a minute's preparation"
    parser.add_argument("--compile", action="store_true", help=told)


def add_out_options(parser: Any) -> None:
    """Add `--out` and `--overwrite` to a parser or a group of one."""
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of results (default: results/NAME-KEY, the same again for the same question)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what lies in --out and answers another question"
    )
