"""Parameters as people type them: `KEY=VALUE`, of the types that the defaults have."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from common.errors import UserError

MOST = 100_000
"""Largest count, size or other number that a method takes: beyond it, it would not end or not fit into memory."""
MOST_SEED = 2**63 - 1
_WORDS = {"true": True, "false": False, "none": None, "null": None, "inf": float("inf"), "-inf": float("-inf")}


def parse_value(text: str) -> Any:
    """A Python literal, or `true`, `false`, `none`, `null`, `inf`, `-inf` in any case; all else is text."""
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def parse_parameters(text: str, rest: str) -> dict[str, Any]:
    """`KEY=VALUE,KEY=VALUE` -> parameters, see `parse_value`.

    Args:
        text: the whole of what was typed, for the message.
        rest: its part after the name.

    Raises:
        UserError: a pair without a key or an equals sign.
    """
    parameters: dict[str, Any] = {}
    for pair in filter(None, re.split(r",(?![^(]*\))", rest)):  # not the commas of a tuple
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(f"{text!r}: expected NAME:KEY=VALUE,..., got {pair!r}")
        parameters[key.strip()] = parse_value(value)
    return parameters


def check_parameters(name: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Whether a method has these parameters, and values of the kind of its defaults.

    Args:
        name: of the method, for the message.
        given: what it is to be called with.
        defaults: its parameters; where one is None, the method itself looks at the value.

    Raises:
        UserError: it has no such parameter, or the value is of another kind.
    """
    for key, value in given.items():
        if key not in defaults:
            raise UserError(f"{name} has no parameter {key!r}; it has {', '.join(defaults) or 'none'}")
        default = defaults[key]
        kind, fits = _kind(default)
        if not fits(value):
            raise UserError(f"{name}: {key}={value!r} is no {kind}; the default is {default!r}")


def _kind(default: Any) -> tuple[str, Callable[[Any], bool]]:
    """In words, and whether a value is of it."""
    if isinstance(default, bool):
        return "true or false", lambda value: isinstance(value, (bool, np.bool_))
    if isinstance(default, int):
        least, most = min(default, 1), MOST if default else MOST_SEED  # counts and sizes, or a seed
        return (
            f"whole number from {least} on (at most {most:,})",
            lambda value: _is_number(value, Integral) and least <= value <= most,
        )
    if isinstance(default, float):
        return f"number from 0 on (at most {MOST:,})", _is_small
    if isinstance(default, tuple):
        return (
            f"tuple such as (1,2), of at most 1,000 numbers from 0 to {MOST:,}",
            lambda value: isinstance(value, (tuple, list)) and 0 < len(value) <= 1000 and all(map(_is_small, value)),
        )
    if default is None:
        return (
            f"whole number from 1 on, names or none (at most {MOST:,})",
            lambda value: (
                value is None
                or (_is_number(value, Integral) and 1 <= value <= MOST)
                or (
                    isinstance(value, (tuple, list)) and len(value) > 0 and all(isinstance(name, str) for name in value)
                )
            ),
        )
    return "text", lambda value: isinstance(value, str)


def _is_small(value: Any) -> bool:
    return _is_number(value, Real) and 0 <= value <= MOST


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
