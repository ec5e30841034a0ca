"""What `python train/main.py --help` and `KEY --help` print: every setting with its default and its documentation."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from common.errors import UserError
from train.settings import Settings

_HEAD = """usage: accelerate launch train/main.py recipe=NAME [KEY=VALUE ...]
       python train/main.py                  lists the recipes
       python train/main.py KEY --help       one setting or group, such as optim or optim.lr

Defaults < recipe < KEY=VALUE. Lists are typed as KEY=[1,2], nothing as KEY=null."""


@dataclass(frozen=True)
class Documented:
    """One setting."""

    key: str
    """Dotted."""
    default: Any
    text: str
    """Its documentation, in one line."""


@cache
def documented() -> tuple[Documented, ...]:
    """Every setting, in the order in which they are declared."""
    return tuple(_fields(Settings, ""))


def usage(keys: Sequence[str] = ()) -> str:
    """The help on some settings or groups of them, on all of them by default.

    Raises:
        UserError: no setting or group has that name.
    """
    known = documented()
    for key in keys:
        if not any(_within(item.key, key) for item in known):
            groups = {item.key.rpartition(".")[0] for item in known} - {""}
            raise UserError(f"no setting {key!r}; {nearest_key(key, [*groups, *(item.key for item in known)])}")
    shown = [item for item in known if not keys or any(_within(item.key, key) for key in keys)]
    lines = []
    for item in shown:
        lines.append(f"{item.key}={_typed(item.default)}")
        lines += textwrap.wrap(item.text, 110, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines if keys else [_HEAD, "", *lines])


def nearest_key(name: str, known: Sequence[str]) -> str:
    """Advice on an unknown setting: one that is spelt like it, or else one whose documentation has its words."""
    group, _, last = name.rpartition(".")

    near = [key for key in known if _ratio(last, key.rpartition(".")[2]) > 0.55]
    best = max(near, key=lambda key: _ratio(last, key.rpartition(".")[2]) + _ratio(name, key), default="")
    if not best:
        words = last.replace("_", " ").lower()
        about = [item.key for item in documented() if words in item.text.lower() and item.key in known]
        best = min(about, key=lambda key: (bool(group) and key.rpartition(".")[0] != group, len(key)), default="")
    return f"did you mean {best}?" if best else "python train/main.py --help lists all of them"


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _within(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}.")


def _typed(value: Any) -> str:
    """A value as it would be typed."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value).replace(" ", "")


def _fields(kind: type, prefix: str) -> list[Documented]:
    found: list[Documented] = []
    texts = _texts(kind)
    for item in dataclasses.fields(kind):
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if dataclasses.is_dataclass(default):
            found += _fields(type(default), f"{prefix}{item.name}.")
        else:
            found.append(Documented(prefix + item.name, default, texts[item.name]))
    return found


def _texts(kind: type) -> dict[str, str]:
    """The text under each field of a class of settings."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(text.value).split())
        for field, text in pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
