"""Functions found by name: what people type as `NAME:KEY=VALUE,...`, what it names, and registries of those."""

from __future__ import annotations

import inspect
import re
from ast import literal_eval
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from numbers import Integral, Real
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from common.errors import UserError, did_you_mean

MOST = 100_000
"""Largest count, size or other number that a parameter takes: beyond it, it would not end or not fit into memory."""
MOST_SEED = 2**63 - 1
_WORDS = {"true": True, "false": False, "none": None, "null": None, "inf": float("inf"), "-inf": float("-inf")}


@dataclass(frozen=True)
class Named:
    """A function with the name that people type."""

    name: str
    function: Callable[..., Any]
    """Its documentation begins with a line that says what it is."""
    note: str = field(default="", kw_only=True)
    """What anyone who reads its results must know; shown in the help and in result files."""
    given: ClassVar[frozenset[str]] = frozenset()
    """Arguments that its caller gives, so that they are no parameters."""

    @property
    def summary(self) -> str:
        """First line of its documentation."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """Its parameters and their defaults."""
        signature = inspect.signature(self.function).parameters
        return {name: p.default for name, p in signature.items() if name not in self.given}


N = TypeVar("N", bound=Named)
E = TypeVar("E")


@dataclass(frozen=True)
class Chosen(Generic[N]):
    """What was asked for, parsed once and carried from there."""

    label: str
    """As it was typed; its name in rows, tables and files."""
    entry: N
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Those that were given."""

    @property
    def settings(self) -> dict[str, Any]:
        """Every parameter, given or not."""
        return {**self.entry.parameters, **self.parameters}


class Registry(Mapping[str, N]):
    """Entries by name, in the order in which they are shown.

    Args:
        kind: of the entries, in a word for messages.
        entries: of names that differ.
    """

    def __init__(self, kind: str, entries: Iterable[N]) -> None:
        self.kind = kind
        self._entries: dict[str, N] = {}
        for entry in entries:
            if entry.name in self._entries:
                raise ValueError(f"{kind} {entry.name}: two entries of that name")
            self._entries[entry.name] = entry

    def __getitem__(self, name: str) -> N:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, text: str, parameters: Mapping[str, Any] | None = None) -> Chosen[N]:
        """What `NAME` or `NAME:KEY=VALUE,KEY=VALUE` names, such as `threshold_grad_cam:threshold=0.5`.

        Args:
            text: as it was typed.
            parameters: further ones, by keyword.

        Raises:
            UserError: there is no such entry, it has no such parameter, or the value is of another kind.
        """
        name, _, rest = text.partition(":")
        if name not in self:
            raise UserError(f"unknown {self.kind} {name!r}; {did_you_mean(name, self)}")
        chosen = {**parse_parameters(text, rest), **(parameters or {})}
        check_parameters(name, chosen, self[name].parameters)
        return Chosen(text, self[name], chosen)

    def choose(self, asked: Asked[N]) -> dict[str, Chosen[N]]:
        """What is asked for, by label, each once.

        Args:
            asked: a text, several, or by text the parameters; what is chosen already stays as it is.

        Raises:
            UserError: see `find`.
        """
        if isinstance(asked, Mapping):
            return {
                text: value if isinstance(value, Chosen) else self.find(text, value) for text, value in asked.items()
            }
        texts = [asked] if isinstance(asked, str) else asked
        return {text: self.find(text) for text in texts}


Asked = str | Iterable[str] | Mapping[str, Mapping[str, Any] | Chosen[N]]
"""`NAME` or `NAME:KEY=VALUE,...`, several of them, or names with their parameters."""


def entries_of(package: str, files: Iterable[str], kind: type[E]) -> list[E]:
    """The `ENTRIES` of some files of a package, one after another.

    Args:
        package: its full name.
        files: without `.py`.
        kind: that every entry has.
    """
    found = [entry for file in files for entry in import_module(f"{package}.{file}").ENTRIES]
    assert all(isinstance(entry, kind) for entry in found)
    return found


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
    """Whether a function has these parameters, and values of the kind of its defaults.

    Args:
        name: of the function, for the message.
        given: what it is to be called with.
        defaults: its parameters; where one is None, the function itself looks at the value.

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
