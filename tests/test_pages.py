"""The pages for those who carry on say what is there."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.tree import END, README, START, first_line, tree, with_tree

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(p for name in ("checkpoints", "docs", "tests") for p in (ROOT / name).rglob("*.md"))]
)


def test_the_readme_lists_every_file_with_its_line() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count(START) == text.count(END) == 1
    shown = text.split(START)[1].split(END)[0]
    files = {path for package in ("common", "train", "evaluate") for path in (ROOT / package).rglob("*.py")}
    assert len(re.findall(r"^ *\w+(?:\.py|/) ", shown, re.MULTILINE)) == len(files)
    assert shown == tree(), "run `python -m tests.tree --write`"


def test_every_module_says_in_one_sentence_what_it_holds() -> None:
    for package in ("common", "train", "evaluate"):
        for path in (ROOT / package).rglob("*.py"):
            line = first_line(path)
            assert len(line) > 15 and line[-1] in ".?", path


def test_a_tree_takes_the_place_of_the_old_one_only(tmp_path: Path) -> None:
    room = tmp_path / "common" / "data"
    room.mkdir(parents=True)
    for path, doc in ((room.parent, "Shared."), (room, "Formats."), (tmp_path / "train", "Train."),
                      (tmp_path / "evaluate", "Measure.")):  # fmt: skip
        path.mkdir(exist_ok=True)
        (path / "__init__.py").write_text(f'"""{doc}"""')
    (room / "shards.py").write_text('"""Shards.\n\nMore.\n"""')
    assert tree(tmp_path).splitlines()[1:-1] == [
        "common/        Shared.", "  data/        Formats.", "    shards.py  Shards.", "train/         Train.",
        "evaluate/      Measure.",
    ]  # fmt: skip
    assert with_tree(f"a\n{START}old\n{END}b\n", "new\n") == f"a\n{START}new\n{END}b\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]*)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_citation_names_this_version_and_the_study() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["cff-version"] == "1.2.0" and citation["title"] == project["name"]
    assert str(citation["version"]) == project["version"] and citation["license"] == project["license"]
    study = citation["preferred-citation"]
    assert study["url"] == "https://arxiv.org/abs/2408.03164" and study["year"] == 2024
    readme = README.read_text(encoding="utf-8")
    assert [author["family-names"] in readme for author in study["authors"]] == [True] * 3


def test_the_changelog_has_a_section_for_what_is_to_come_in_the_usual_order() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (Unreleased|\d)", text, re.MULTILINE)
    usual = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for section in text.split("\n## ")[1:]:
        kinds = re.findall(r"^### (\w+)$", section, re.MULTILINE)
        assert kinds == [kind for kind in usual if kind in kinds]


def test_make_has_every_target_that_contributing_names() -> None:
    named = set(re.findall(r"`make ([a-z-]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert len(named) >= 5 and named <= targets
