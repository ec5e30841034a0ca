"""Every data set by the name people type. Another one is a file here with its `ENTRIES`, and a line below."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.errors import UserError
from evaluate.data.interface import EvalData, ModelView, Source
from evaluate.named import entries_of

_FILES = (
    "clickme",
    "folder",
    "records",
    "scenes",
)

_FOUND: list[type[EvalData]] = entries_of("evaluate.data", _FILES, type)
DATA_SETS = {data.name: data for data in _FOUND}


def typed_names() -> list[str]:
    """What `--data` takes."""
    return [f"{name}:{data.pattern}" if data.pattern else name for name, data in DATA_SETS.items()]


def find_data(text: str, root: Path | None = None) -> type[EvalData]:
    """The data set that a text such as `clickme` or `parquet:PATTERN` names.

    Args:
        text: `--data`.
        root: `--data-root`.

    Raises:
        UserError: there is none of that name, or its pattern or its folder is not given.
    """
    name, colon, pattern = text.partition(":")
    data = DATA_SETS.get(name)
    if data is None or bool(colon) != bool(data.pattern) or bool(pattern) != bool(data.pattern):
        raise UserError(f"--data {text}: take one of {', '.join(typed_names())}")
    if data.layout and root is None:
        raise UserError(f"--data {text} needs --data-root DIR, the folder that holds {data.layout}")
    return data


def open_data(text: str, root: Path | None = None, labels: Path | None = None) -> Callable[[ModelView], EvalData]:
    """How to get the data set for a model, see `EvalData.opener`.

    Raises:
        UserError: see `find_data`, or it is not there, or cannot be read.
    """
    return find_data(text, root).opener(Source(root or Path(), text.partition(":")[2], labels))
