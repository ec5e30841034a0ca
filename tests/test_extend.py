"""What docs/extend.md adds works as it stands there: one new file and one line, in a copy of the tree."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))


@pytest.fixture
def tree(tmp_path):
    for name in ("common", "evaluate", "checkpoints"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def blocks(section):
    """The new file, its text, the registry, its line and the command."""
    new = re.search(r"^New file `(.+?)`:\n\n```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    line = re.search(r"^Its line among `_FILES` of `(.+?)`.*?:\n\n```\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    command = re.search(r"^Used:\n\n```\n(.*?)\n```", section, re.DOTALL | re.MULTILINE)
    return *new.groups(), *line.groups(), command[1]


def use(section, tree):
    """Do what a section says, in a copy of the tree; the folder of results."""
    file, text, registry, line, command = blocks(SECTIONS[section])
    assert not (tree / file).exists()
    (tree / file).write_text(text)
    before = (tree / registry).read_text()
    (tree / registry).write_text(before.replace("_FILES = (", "_FILES = (\n" + line, 1))
    python, *words = shlex.split(command)
    assert python == "python" and "--out" in words
    found = subprocess.run(
        [sys.executable, *words, "--workers", "0"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return tree / words[words.index("--out") + 1]


def test_the_explainer_of_the_page_is_measured(tree):
    out = use("An explainer", tree)
    strong, flat = (s for s in json.loads((out / "scores.json").read_text()))
    assert strong["explainer_notes"] == {s["explainer"]: "knows no class" for s in (strong, flat)}
    assert (strong["n_images"], strong["n_degenerate"], flat["n_degenerate"]) == (2, 0, 2)  # x^0 is 1 everywhere


def test_the_metric_of_the_page_is_measured(tree):
    rows = pq.read_table(use("A metric", tree) / "per_image.parquet").to_pylist()
    side = json.loads((tree / "checkpoints" / "demo" / "config.json").read_text())["transform"]["crop"]
    assert len(rows) == 2
    for row in rows:  # Fake-CAM is 1 everywhere but at one pixel
        assert row["spread"] == pytest.approx(1 - 1 / side**2, abs=1e-7) and row["spread:level=1.0"] == 0


def test_the_study_of_the_page_is_run(tree):
    out = use("A study", tree)
    scores = json.loads((out / "scores.json").read_text())
    assert [(s["checkpoint"], s["protocol"]) for s in scores] == [("demo", "aligned"), ("demo_dcls", "aligned")]
    (pair,) = json.loads((out / "comparisons.json").read_text())
    assert {"demo", "demo_dcls"} <= set(map(str, pair.values()))
