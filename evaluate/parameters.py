"""Parameters as people type them: `KEY=VALUE`, of the types that the defaults have."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from common.errors import UserError

_WORDS = {"true": True, "false": False, "none": None, "null": None, "inf": float("inf"), "-inf": float("-inf")}


def parse_value(text: str) -> Any:
    """A Python literal, or `true`, `false`, `none`, `null`, `inf`, `-inf` in any case; all else is text."""
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
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
        least = min(default, 1)  # counts and sizes, or a seed
        return f"whole number from {least} on", lambda value: _is_number(value, Integral) and value >= least
    if isinstance(default, float):
        return "number from 0 on", lambda value: _is_number(value, Real) and value >= 0
    if isinstance(default, tuple):
        return "tuple such as (1,2)", lambda value: isinstance(value, (tuple, list)) and len(value) > 0
    if default is None:
        return (
            "whole number from 1 on, names or none",
            lambda value: (
                value is None
                or (_is_number(value, Integral) and value >= 1)
                or (
                    isinstance(value, (tuple, list)) and len(value) > 0 and all(isinstance(name, str) for name in value)
                )
            ),
        )
    return "text", lambda value: isinstance(value, str)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
