"""`python -m tests.tree` prints the tree of files that the README shows; with `--write` it puts it there.

A line per module, the first of its docstring; a folder's line is that of its `__init__.py`.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PACKAGES = ("common", "train", "evaluate")
START, END = "<!-- tree -->\n", "<!-- end tree -->\n"


def first_line(path: Path) -> str:
    """What a module says of itself; empty if nothing."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return doc.splitlines()[0] if doc else ""


def lines_of(folder: Path, depth: int = 0) -> list[tuple[str, str]]:
    """The folder, its modules and then its subfolders, each as (indented name, what it holds)."""
    lines = [(f"{'  ' * depth}{folder.name}/", first_line(folder / "__init__.py"))]
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            lines.append((f"{'  ' * (depth + 1)}{path.name}", first_line(path)))
    for inner in sorted(folder.iterdir()):
        if (inner / "__init__.py").is_file():
            lines += lines_of(inner, depth + 1)
    return lines


def tree(root: Path = ROOT) -> str:
    """The tree of all packages as a Markdown block."""
    lines = [line for package in PACKAGES for line in lines_of(root / package)]
    width = max(len(name) for name, _ in lines)
    return "```\n" + "".join(f"{name:{width}}  {text}".rstrip() + "\n" for name, text in lines) + "```\n"


def with_tree(text: str, new: str) -> str:
    """A page with its tree replaced."""
    before, after = text.split(START)[0], text.split(END)[1]
    return f"{before}{START}{new}{END}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        README.write_text(with_tree(README.read_text(encoding="utf-8"), tree()), encoding="utf-8")
    else:
        print(tree(), end="")
