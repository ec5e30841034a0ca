"""Kinds of plain values that come from outside: descriptions in words, tests, and tables of them."""

from __future__ import annotations

import math
import reprlib
import unicodedata
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import UserError, did_you_mean

_SHORT = reprlib.Repr()
_SHORT.maxstring = 80


@dataclass(frozen=True)
class Kind:
    """What a value must be."""

    words: str
    """As it stands after "it must be"."""
    fits: Callable[[Any], bool]
    """Whether a value is that."""


def whole(least: int, most: int) -> Kind:
    """A whole number within bounds; True and 1.0 are none."""
    return Kind(f"a whole number from {least} to {most}", lambda v: type(v) is int and least <= v <= most)


def number(least: float, most: float) -> Kind:
    """A finite number within bounds."""
    return Kind(
        f"a number from {least:g} to {most:g}",
        lambda v: type(v) in (int, float) and math.isfinite(v) and least <= v <= most,
    )


def one_of(*known: str) -> Kind:
    """One of a few words."""
    return Kind(f"one of {', '.join(map(repr, known))}", lambda v: isinstance(v, str) and v in known)


def line(longest: int) -> Kind:
    """Text of one line, without control characters."""
    return Kind(f"a line of text of at most {longest} characters", lambda v: _is_text(v, longest, _NOT_IN_A_LINE))


def text(longest: int) -> Kind:
    """Text of any number of lines."""
    return Kind(f"text of at most {longest} characters", lambda v: _is_text(v, longest, _NOT_IN_TEXT))


def either(*kinds: Kind) -> Kind:
    """A value of any of these kinds."""
    return Kind(" or ".join(kind.words for kind in kinds), lambda v: any(kind.fits(v) for kind in kinds))


def listed(kind: Kind, least: int, most: int) -> Kind:
    """A list, or a tuple, of values of one kind, with bounds for its length."""
    length = f"{least}" if least == most else f"{least} to {most}"
    return Kind(
        f"a list of {length} entries, each {kind.words}",
        lambda v: isinstance(v, list | tuple) and least <= len(v) <= most and all(map(kind.fits, v)),
    )


def table_of(kind: Kind) -> Kind:
    """A mapping whose values are of one kind."""
    return Kind(
        f"a mapping, each value {kind.words}", lambda v: isinstance(v, dict) and all(map(kind.fits, v.values()))
    )


FLAG = Kind("true or false", lambda v: isinstance(v, bool))
NOTHING = Kind("null", lambda v: v is None)
TABLE = Kind("a mapping", lambda v: isinstance(v, dict))
FIGURE = Kind("a finite number", lambda v: type(v) in (int, float) and math.isfinite(v))


def check_table(
    values: Mapping[str, Any], kinds: Mapping[str, Kind], where: str, prefix: str = "", required: Collection[str] = ()
) -> None:
    """Compare the entries of a mapping with what they must be.

    Args:
        values: the mapping.
        kinds: of every entry it may have, by key.
        where: the file or setting that holds it, for the message.
        prefix: what stands before each key there, such as `transform.`.
        required: keys that must not be absent.

    Raises:
        UserError: an unknown key, with those like it; a value of another kind; an absent key.
    """
    for key, value in values.items():
        if key not in kinds:
            raise UserError(f"{where}: unknown key {_SHORT.repr(prefix + key)}; {did_you_mean(key[:100], kinds)}")
        if not kinds[key].fits(value):
            raise UserError(f"{where}: {prefix}{key} is {_SHORT.repr(value)}; it must be {kinds[key].words}")
    for key in required:
        if key not in values:
            raise UserError(f"{where}: {prefix}{key} is missing; it must be {kinds[key].words}")


_NOT_IN_TEXT = ("Cs",)  # halves of surrogate pairs, which no file takes
_NOT_IN_A_LINE = ("Cs", "Cc", "Zl", "Zp")  # controls, and what ends a line or paragraph


def _is_text(value: Any, longest: int, without: tuple[str, ...]) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= longest
        and not any(unicodedata.category(character) in without for character in value)
    )
