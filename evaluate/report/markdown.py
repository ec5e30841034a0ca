"""The tables of a report: what their cells are, and how they read in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from common.text import in_code, markdown
from evaluate.report.tables import Table


def markdown_page(
    title: str, partial: str, lacking: Sequence[str], tables: Sequence[Table], provenance: dict[str, str]
) -> str:
    """`report.md`.

    Args:
        title: of the report.
        partial: what is not there of the data set; empty where nothing lacks.
        lacking: what could not be measured.
        tables: in order.
        provenance: what was computed how, by heading.
    """
    lines = [f"# {markdown(title)}", ""]
    if partial:
        lines += [f"**Partial, not the whole data set: {markdown(partial)}.**", ""]
    for text in lacking:
        lines += [f"**Not measured: {markdown(text)}**", ""]
    for heading, head, rows in tables:
        lines += [f"## {markdown(heading)}", "", _markdown_row(head), f"|{'---|' * len(head)}"]
        lines += [*map(_markdown_row, rows), ""]
    lines += ["## How it was computed", "", *(_markdown_entry(*entry) for entry in provenance.items()), ""]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown, cells))} |"


def _markdown_entry(key: str, value: str) -> str:
    return f"- {markdown(key)}: {in_code(value) if key == 'command' else markdown(value)}"
