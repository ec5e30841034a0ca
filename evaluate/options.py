"""Command-line options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from evaluate.parameters import parse_value


def add_model_options(parser: Any) -> None:
    """Add `--model` and `--model-arg` to a parser or a group of one."""
    parser.add_argument("--model", help="architecture of a weight file: a zoo name (convnext_t_dcls) or timm:NAME")
    parser.add_argument("--model-arg", action="append", default=[], metavar="KEY=VALUE", help="of --model; repeatable")


def add_layer_option(parser: Any) -> None:
    """Add `--layer` to a parser or a group of one."""
    parser.add_argument("--layer", help="name of the module that is explained (default: the last feature map)")


def add_compile_option(parser: Any) -> None:
    """Add `--compile` to a parser or a group of one."""
    told = "torch.compile the network: up to twice as fast where there are many passes, after a minute's preparation"
    parser.add_argument("--compile", action="store_true", help=told)


def model_args(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` pairs -> arguments; see `parse_value`.

    Raises:
        UserError: a pair without a key or an equals sign.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(f"--model-arg {pair}: expected KEY=VALUE, such as pad_type=same")
        out[key] = parse_value(value)
    return out
