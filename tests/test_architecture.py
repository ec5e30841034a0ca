"""Who imports whom: train and evaluate never import each other, common imports neither."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"common": {"train", "evaluate"}, "train": {"evaluate"}, "evaluate": {"train"}}
PASSES = {"explainers", "maps", "metrics", "named", "network", "rows"}
MAY_IMPORT = {
    "evaluate": {
        "maps": set(),
        "named": set(),
        "rows": set(),
        "network": {"maps", "named"},
        "data": {"maps", "named"},
        "explainers": {"maps", "named", "network"},
        "metrics": {"maps", "named", "network"},
        "run": {"data", *PASSES},
        "scores": {"explainers", "metrics", "rows"},
        "report": {"explainers", "maps", "metrics", "rows", "run.pictures", "scores"},
        "studies": {"data", "report", "run", "scores", *PASSES},
        "clickme": set(),
        "cli": {"data", "report", "run", "scores", "studies", *PASSES},
        "__init__": {"explainers"},
        "__main__": {"cli"},
    },
    "train": {
        "data": {"randomness", "settings", "stopping"},
        "losses": {"bounds", "settings"},
        "runs": {"averaging", "configure", "randomness", "settings"},
        "watching": {"data", "runs", "settings"},
    },
}
"""Which rooms of a package a room may import, beside those of `common`; a room that is not named, all."""
MOST_FLOORS, MOST_ROOMS = 7, 16
"""Of `evaluate`: a room stands above all that it imports."""


def imported_packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported_modules(path)}


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name for name in inner if _file_of(name)} or {node.module}
    return names


def _file_of(module: str) -> Path | None:
    place = ROOT.joinpath(*module.split("."))
    return next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()), None)


def rooms_of(package: str) -> dict[str, dict[str, list[str]]]:
    """By room, those that it imports, and by which lines."""
    rooms: dict[str, dict[str, list[str]]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        room = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        found = rooms.setdefault(room, {})
        for module in imported_modules(path):
            first, _, inner = module.partition(".")
            if first == package and inner and inner.partition(".")[0] != room:
                found.setdefault(inner.partition(".")[0], []).append(f"{path.relative_to(ROOT)}: {module}")
    return rooms


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_do_not_import_across(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        assert not imported_packages(path) & FORBIDDEN[room], path


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_room_imports_what_the_table_allows(package):
    rooms = rooms_of(package)
    assert set(MAY_IMPORT[package]) <= set(rooms)
    if package == "evaluate":
        assert set(MAY_IMPORT[package]) == set(rooms)
    for room, allowed in MAY_IMPORT[package].items():
        for other, lines in rooms[room].items():
            narrow = [f": {package}.{name}" for name in allowed if name.startswith(f"{other}.")]
            wrong = [line for line in lines if not any(line.endswith(name) for name in narrow)]
            assert other in allowed or not wrong, wrong


@pytest.mark.parametrize("package", ["common", "train", "evaluate"])
def test_rooms_stand_above_one_another_without_circles(package):
    rooms = rooms_of(package)

    def floor(room, below=()):
        assert room not in below, f"a circle: {' > '.join([*below, room])}"
        return 1 + max((floor(other, (*below, room)) for other in rooms[room]), default=0)

    floors = {room: floor(room) for room in rooms}
    if package == "evaluate":
        assert max(floors.values()) <= MOST_FLOORS, floors
        assert len(rooms) <= MOST_ROOMS


def test_no_file_is_long_without_a_reason():
    for package in FORBIDDEN:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            doc = ast.get_docstring(ast.parse(text)) or ""
            assert len(text.splitlines()) <= 300 or "one file" in doc, path


def test_no_function_is_long_but_the_training_loop():
    for package in FORBIDDEN:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                    doc = ast.get_docstring(node, clean=False) or ""
                    lines = node.end_lineno - node.lineno + 1 - len(doc.splitlines())
                    loop = (path.relative_to(ROOT).as_posix(), node.name) == ("train/loop.py", "train")
                    assert lines <= 60 or loop, f"{path}: {node.name} has {lines} lines"


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
