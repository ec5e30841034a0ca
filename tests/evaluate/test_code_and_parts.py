"""A copy of the tree: a data set is a new file and a line, and edits throw away the parts that depend on them only."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from evaluate.run.identity import code_digest

ROOT = Path(__file__).parents[2]
SECTION = (
    (ROOT / "docs" / "extend.md").read_text(encoding="utf-8").partition("## A data set\n")[2].partition("\n## ")[0]
)
CALLED = ["--ckpt", "untrained", "--model", "demo", "--workers", "0", "--limit", "3"]


@pytest.fixture
def tree(tmp_path):
    """The packages that evaluation needs, to be edited."""
    for name in ("common", "evaluate"):
        shutil.copytree(ROOT / name, tmp_path / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "tree"


def run(tree, *arguments):
    """What the command prints, from a copy of the tree."""
    done = subprocess.run(
        [sys.executable, "-m", "evaluate", *map(str, arguments)],
        cwd=tree,
        env={**os.environ, "TQDM_DISABLE": "1", "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def edit(path):
    path.write_text(path.read_text(encoding="utf-8") + "\n_EDITED = True\n", encoding="utf-8")


def test_the_data_set_of_the_page_on_extending_is_a_new_file_and_a_line(tree, tmp_path):
    (module,) = re.findall(r"^```python\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    (line,) = re.findall(r"registry.py`:\n\n```\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    (command,) = re.findall(r"^```\npython -m evaluate (.*?)\n```", SECTION, re.MULTILINE)
    place = tree / re.search(r"^# (\S+)\n", module)[1]
    registry = tree / "evaluate" / "data" / "registry.py"
    assert not place.exists() and len(line.splitlines()) == 1
    place.write_text(module, encoding="utf-8")
    text = registry.read_text(encoding="utf-8")
    registry.write_text(text.replace("_FILES = (\n", f"_FILES = (\n{line}", 1))
    for name, grey in {"3-dog.png": 90, "11-cat.png": 200}.items():
        Image.new("RGB", (70, 64), (grey, grey, 0)).save(tmp_path / name)
    given = [str(tmp_path) if word == "DIR" else word for word in command.split()]
    run(tree, *given, "--explainer", "centre", "--workers", "0", "--out", tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "per_image.parquet").to_pylist()
    assert [(row["image_id"], row["label"]) for row in rows] == [("11-cat.png", 11), ("3-dog.png", 3)]
    assert all(row["complexity"] is not None for row in rows)


def test_rows_depend_on_the_code_that_makes_them_and_on_no_other(tree):
    before = code_digest(tree)
    assert before == code_digest() == code_digest(ROOT)
    makes = {"data", "explainers", "maps", "metrics", "network", "run", "named.py", "rows.py"}
    left = {path.name for path in (tree / "evaluate").iterdir()} - makes
    assert {"report", "scores", "cli", "studies"} < left
    for name in sorted(left):
        for path in [tree / "evaluate" / name] if name.endswith(".py") else (tree / "evaluate" / name).rglob("*.py"):
            edit(path)
    assert code_digest(tree) == before
    seen = {before}
    rooms = [tree / "evaluate" / name for name in sorted(makes)] + [tree / "common", tree / "common" / "data"]
    for room in rooms:
        edit(room if room.suffix else sorted(room.glob("[a-z]*.py"))[-1])
        seen.add(code_digest(tree))
    assert len(seen) == 1 + len(rooms)


@pytest.mark.slow
def test_an_edit_of_the_report_keeps_finished_parts_and_one_of_an_explainer_does_not(tree, tmp_path):
    given = [*CALLED, "--data", "scenes", "--out", tmp_path / "out"]
    assert "parts kept" not in run(tree, *given)
    part = next((tmp_path / "out" / "parts").rglob("*.parquet"))
    written = part.stat().st_mtime_ns
    page = tree / "evaluate" / "report" / "page.py"
    page.write_text(page.read_text(encoding="utf-8").replace("Partial, not the whole", "Some, not the whole"))
    assert "1 of 1 parts kept from an earlier start" in run(tree, *given)
    assert part.stat().st_mtime_ns == written  # nothing was measured again,
    assert "Some, not the whole" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")  # but reported
    edit(tree / "evaluate" / "explainers" / "grad_cam.py")
    assert "parts kept" not in run(tree, *given)
