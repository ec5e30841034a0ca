"""Who imports whom: train and evaluate never import each other, common imports neither."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"common": {"train", "evaluate"}, "train": {"evaluate"}, "evaluate": {"train"}}


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_do_not_import_across(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        assert not imported_packages(path) & FORBIDDEN[room], path


def test_the_layer_needs_torch_and_dcls_only():
    assert imported_packages(ROOT / "common" / "dcls.py") - set(sys.stdlib_module_names) == {"torch", "DCLS"}


def test_no_module_of_train_bears_the_name_of_a_library_or_standard_module():
    libraries = set(sys.stdlib_module_names) | {
        "torch",
        "torchvision",
        "timm",
        "accelerate",
        "datasets",
        "evaluate",
        "tensorboard",
        "numpy",
        "scipy",
    }
    assert not {path.stem for path in (ROOT / "train").rglob("*.py")} & libraries


def test_no_path_of_a_machine_in_the_tree():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = {".py", ".md", ".yaml", ".toml", ".json", ".sh", ".sbatch", ".html", ""}
    found = [path for path in map(ROOT.joinpath, listed) if path.suffix in texts and path.is_file()]
    assert {ROOT / "Makefile", ROOT / "pyproject.toml"} <= set(found)
    for path in found:
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) not in text and f"{Path.home()}/" not in text, path
        assert not re.search(r"/(home|Users)/\w", text), path
