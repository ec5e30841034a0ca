"""The tables of a report: what their cells are, and how they read in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from common.text import in_code, markdown


class Ranked(str):
    """A figure with its rank behind it, such as `0.5000 (rank 2)`; known by its type, as any name may read so."""

    value: str
    rank: int

    def __new__(cls, value: str, rank: int) -> Ranked:
        """Its text is that of both."""
        cell = super().__new__(cls, f"{value} (rank {rank})")
        cell.value, cell.rank = value, rank
        return cell


Table = tuple[str, list[str], list[list[str]]]
"""Title, header, rows of text."""


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
