"""One sheet of many explained images: a row per image, a column per explainer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw

CELL, LINE, LETTERS = 200, 13, 36  # pixels of a picture and of a line, letters in a line
Cells = list[tuple[str, Image.Image]]
"""Titles and pictures, a row of a contact sheet."""


def contact_sheet(rows: Sequence[Sequence[tuple[str, Image.Image]]]) -> Image.Image:
    """Pictures with a title each, wrapped to their width, a row a photograph."""
    titles = [["\n".join(_wrapped(title)) for title, _ in cells] for cells in rows]
    head = LINE * (max(title.count("\n") for row in titles for title in row) + 1) + 4
    sheet = Image.new("RGB", (CELL * max(map(len, rows)), (CELL + head) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, cells in enumerate(rows):
        for x, (_, picture) in enumerate(cells):
            left, top = x * CELL, y * (CELL + head)
            draw.multiline_text((left + 4, top + 2), titles[y][x], fill="black", spacing=1)
            sheet.paste(picture.resize((CELL - 4, CELL - 4), Image.Resampling.BICUBIC), (left + 2, top + head))
    return sheet


def _wrapped(title: str) -> list[str]:
    return [part for line in title.split("\n") for part in textwrap.wrap(line, LETTERS)]
