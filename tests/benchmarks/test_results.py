"""The pages of results: what was measured, when, where and by which command."""

import re
import sys
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.benchmarks import __main__ as benchmarks

PAGES = sorted(path for path in benchmarks.RESULTS.glob("*.md") if path.name != "README.md")
SCRIPTS = sorted(path.stem.removeprefix("bench_") for path in benchmarks.FOLDER.glob("bench_*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_a_date_a_machine_and_a_command(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    dates = re.findall(r"Measured on (\d{4}-\d{2}-\d{2}): [^\n]+, \d+ CPU threads", text)
    assert dates and all(date.fromisoformat(day) <= date.today() for day in dates)
    assert re.search(r"python -m (tests\.benchmarks|evaluate)\b", text)
    assert re.search(r"^\|(---\|)+$", text, re.MULTILINE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_page_of_a_benchmark_bears_its_title_and_command(name: str) -> None:
    script = (benchmarks.FOLDER / f"bench_{name}.py").read_text(encoding="utf-8")
    title = re.search(r'^TITLE = "(.*)"$', script, re.MULTILINE)
    text = (benchmarks.RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert title and text.startswith(f"# {title[1]}\n")
    assert f"`python -m tests.benchmarks {name}`" in text


def test_the_overview_links_every_page() -> None:
    overview = (benchmarks.RESULTS / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\((\w+\.md)\)", overview)) == [page.name for page in PAGES]


def test_a_table_replaces_that_of_its_kind_of_device_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks, "device", lambda: torch.device("cpu"))
    benchmarks.put("step", "A step", "Goal: fast.", "| first |", tmp_path)
    page = tmp_path / "step.md"
    page.write_text(page.read_text(encoding="utf-8") + "\nBy hand.\n", encoding="utf-8")
    monkeypatch.setattr(benchmarks, "device", lambda: torch.device("cuda"))
    benchmarks.put("step", "A step", "Goal: fast.", "| of a GPU |", tmp_path)
    monkeypatch.setattr(benchmarks, "device", lambda: torch.device("cpu"))
    assert benchmarks.put("step", "A step", "Goal: fast.", "| second |", tmp_path) == page
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# A step\n\nGoal: fast.\n\n<!-- step-cpu -->\nMeasured on ")
    assert "first" not in text and text.count("# A step") == 1
    assert text.index("| second |") < text.index("By hand.") < text.index("| of a GPU |")


def test_the_command_writes_the_page_of_the_benchmark_it_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = SimpleNamespace(TITLE="A step", GOAL="Goal: fast.", run=lambda: "| a table |")
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path)
    monkeypatch.setattr(
        benchmarks.importlib, "import_module", lambda name: {"tests.benchmarks.bench_step": bench}[name]
    )
    monkeypatch.setattr(sys, "argv", ["benchmarks", "step"])
    assert benchmarks.main() == 0
    assert [page.name for page in tmp_path.iterdir()] == ["step.md"]
    assert "| a table |" in (tmp_path / "step.md").read_text(encoding="utf-8")
    assert f"written to {tmp_path / 'step.md'}" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["benchmarks", "stepp"])
    assert benchmarks.main() == 2
