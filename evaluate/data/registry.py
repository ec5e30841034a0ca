"""The data sets by the names that people type: every class that is imported here. A new one is a file and a line."""
# ruff: noqa: F401

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.errors import UserError
from evaluate.data.clickme import ClickMeData
from evaluate.data.folder import FolderData
from evaluate.data.interface import EvalData, ModelView, Source
from evaluate.data.records import HubData, ParquetData, WebdatasetData
from evaluate.data.scenes import ScenesData

DATA_SETS: dict[str, type[EvalData]] = {
    data.name: data
    for data in list(vars().values())
    if isinstance(data, type) and issubclass(data, EvalData) and data is not EvalData
}


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
