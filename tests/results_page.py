"""What docs/results.md says of result files, to be held against those of a run."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "results.md"


def described(heading: str) -> dict[str, list[str]]:
    """By name, in order, the other cells of the table under a heading."""
    section = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(f"{heading}\n")]
    rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in text.splitlines() if line[:3] == "| `"]
    return {name.strip("`"): cells for name, *cells in rows}


TYPES: dict[str, type | tuple[type, ...]] = {
    "text": str,
    "number": (int, float),
    "true or false": bool,
    "list": list,
    "object": dict,
    "object by NAME": dict,
}


def check_keys(values: Mapping[str, Any], heading: str) -> set[str]:
    """See that every key of an object stands under the heading, with its type; returns those that are there."""
    page, found = described(heading), set()
    for path, value in _paths(values, page):
        assert path in page, f"{path} is not on the page under {heading!r}"
        kind, _, meaning = page[path]
        assert meaning and (value is None or isinstance(value, TYPES[kind])), (path, value)
        found.add(path)
    return found


def _paths(values: Mapping[str, Any], page: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Keys within keys, such as `data.name`; what goes by names is looked into where the page does so."""
    for key, value in values.items():
        path = before + key
        yield path, value
        if isinstance(value, dict):
            if page.get(path, [""])[0] != "object by NAME":
                yield from _paths(value, page, f"{path}.")
            elif any(name.startswith(f"{path}.NAME.") for name in page):
                for one in value.values():
                    yield from _paths(one, page, f"{path}.NAME.")


def check_files(folder: Path, heading: str) -> set[str]:
    """See that every file below a folder stands under the heading; returns the lines that fit one."""
    patterns = {name: _pattern(name) for name in described(heading)}
    found = set()
    for path in (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()):
        fitting = {name for name, pattern in patterns.items() if re.fullmatch(pattern, path)}
        assert fitting, f"{path} is not on the page under {heading!r}"
        found |= fitting
    return found


def _pattern(name: str) -> str:
    pattern = re.sub(r"NNNNNNNN|NNNNN", "[0-9]+", re.escape(name).replace("/", r"/"))
    pattern = re.sub(r"CHECKPOINT|EXPLAINER|PROTOCOL|METRIC|KEY|NAME", "[^/]+", pattern)
    return re.sub(r"\\\.png$", r"\\.(png|pdf)", pattern) + ("[^/]+" if name.endswith("/") else "")
