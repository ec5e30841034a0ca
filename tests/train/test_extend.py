"""What docs/extend.md says of loss terms and recipes holds: its code goes into a copy of the tree, which trains."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.checkpoint import read_config
from tests.train.conftest import ROOT, metrics
from train.configure import recipe_list

SMALL = ["smoke=true", "data.image_size=32", "data.eval_size=32", "data.val_images=2", "log.tensorboard=false"]


def section(heading: str) -> tuple[list[str], list[str]]:
    """The code of a section, and the files that it names."""
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    text = re.split(r"^## ", page.partition(f"## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"```\w+\n(.*?)```", text, re.DOTALL), re.findall(r"`([\w/]+\.\w+)`", text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for room in ("common", "train", "recipes"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def typed(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [sys.executable, "train/main.py", *arguments]
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=300)


def test_a_loss_term_is_one_file_and_one_line(tree: Path) -> None:
    (code, line), places = section("A loss term")
    assert line.count("\n") == 1
    new = tree / next(place for place in places if place.startswith("train/losses/"))
    new.write_text(code)
    settings = tree / "train" / "settings.py"
    before = settings.read_text()
    settings.write_text(before.replace("LOSS_TERMS: dict[str, str] = {\n", f"LOSS_TERMS: dict[str, str] = {{\n{line}"))
    assert settings.read_text() != before

    shown = typed(tree, "loss.logits", "--help").stdout
    assert shown == "loss.logits.weight=0.0\n    Factor of the mean square of the logits; 0 for none.\n"
    run = typed(tree, "recipe=demo_dcls", *SMALL, "loss.logits.weight=0.5", "run_dir=run")
    assert run.returncode == 0, run.stderr
    loss, term, total = (metrics(tree / "run", f"train/{name}") for name in ("loss", "logits", "total"))
    assert term.keys() == {1, 2} and min(term.values()) > 0
    assert total == {update: pytest.approx(loss[update] + term[update]) for update in term}


def test_a_recipe_is_one_file(tree: Path) -> None:
    (content,), places = section("A recipe")
    new = tree / next(place for place in places if place.startswith("recipes/"))
    new.write_text(content)
    assert content.partition("\n")[0].lstrip("# ") in recipe_list(new.parent)
    run = typed(tree, f"recipe={new.stem}", *SMALL, "run_dir=run")
    assert run.returncode == 0, run.stderr
    assert metrics(tree / "run", "train/loss").keys() == {1, 2}
    config = read_config(tree / "runs" / "smoke_checkpoints" / f"{new.stem}_smoke")
    assert config.dcls is not None and config.dcls.interpolation == "gauss"
