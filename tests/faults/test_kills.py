"""Whatever change of a file a command is killed at, the same command again gives the same, and leaves nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpoint import load_checkpoint
from common.weights import sha256
from tests.faults.conftest import Attempt, spread
from tests.train.test_resume import arguments
from train.runs.snapshots import list_snapshots

KILLED = -9
EVERY = 10_000
"""Kills: at every change there is."""
some_and_all = pytest.mark.parametrize("kills", [5, pytest.param(EVERY, marks=pytest.mark.slow)])


def names_in(folder: Path) -> set[str]:
    """What lies in a folder, but for events, whose names say when they were written."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found if "events.out" not in name and not name.endswith("train.log")}


def killed_again_and_again(
    attempt: Attempt,
    command: list[Any],
    watched: Path,
    kills: int,
    begin: Callable[[], None],
    check: Callable[[], None],
) -> None:
    """Let a command be killed at changes of a folder, each time from the beginning, and run it again to its end."""
    begin()
    whole = attempt(*command, watched=watched)
    assert whole.status == 0 and whole.changes, whole.output
    check()
    expected = names_in(watched)
    for change in spread(whole.changes, min(kills, whole.changes)):
        shutil.rmtree(watched)
        begin()
        assert attempt(*command, watched=watched, dies_at=change).status == KILLED
        again = attempt(*command, watched=watched)
        finished = again.status == 0 or "exists already" in again.output  # killed after the last thing it had to do
        assert finished, f"killed at change {change} of {whole.changes}:\n{again.output}"
        check()
        assert names_in(watched) == expected, f"killed at change {change} of {whole.changes}"


def figures_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in lines]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(list_snapshots(run / "snapshots")[-1] / "state.pt", weights_only=True)["model"]


@some_and_all
def test_training_and_publishing(tmp_path: Path, attempt: Attempt, kills: int) -> None:
    place = tmp_path / "watched"
    given = arguments(tmp_path, "watched/run", "data.workers=0", "updates=3", "snapshots.every_updates=1")
    command = ["train", *given, "publish=true", f"checkpoints_dir={place}/checkpoints", "resume=auto"]
    seen: list[tuple[list[dict[str, float]], dict[str, torch.Tensor], str]] = []

    def check() -> None:
        _, config = load_checkpoint(place / "checkpoints" / "demo_dcls")
        seen.append((figures_of(place / "run"), tensors_of(place / "run"), config.weights_sha256))
        (figures, tensors, published), (first_figures, first_tensors, first_published) = seen[-1], seen[0]
        assert figures == first_figures and published == first_published
        assert all(torch.equal(tensors[name], first_tensors[name]) for name in first_tensors)

    killed_again_and_again(attempt, command, place, kills, place.mkdir, check)


@some_and_all
def test_publishing_over_a_checkpoint(tmp_path: Path, attempt: Attempt, kills: int) -> None:
    """At every instant a whole checkpoint stands at the name: the one before, or the new one."""
    given = arguments(tmp_path, "run", "data.workers=0", "snapshots.every_updates=1")
    library = tmp_path / "checkpoints"
    command = ["publish", tmp_path / "run", "--name", "net", "--checkpoints", library]
    hashes = []
    for updates in (1, 2):
        assert attempt("train", *given, f"updates={updates}", "resume=auto").status == 0
        assert attempt(*command).status == 0
        hashes.append(load_checkpoint(library / "net")[1].weights_sha256)
        if updates == 1:
            shutil.copytree(library, tmp_path / "before")
            shutil.copy(tmp_path / "run" / "published.json", tmp_path / "published.json")
    assert hashes[0] != hashes[1]

    def begin() -> None:
        shutil.rmtree(library, ignore_errors=True)
        shutil.copytree(tmp_path / "before", library)
        shutil.copy(tmp_path / "published.json", tmp_path / "run" / "published.json")

    begin()
    changes = attempt(*command, watched=library).changes
    assert changes
    for change in spread(changes, min(kills, changes)):
        begin()
        assert attempt(*command, watched=library, dies_at=change).status == KILLED
        assert load_checkpoint(library / "net")[1].weights_sha256 in hashes, f"killed at change {change}"
        again = attempt(*command, watched=library)
        assert again.status == 0, f"killed at change {change} of {changes}:\n{again.output}"
        assert load_checkpoint(library / "net")[1].weights_sha256 == hashes[1]
        assert [path.name for path in library.iterdir()] == ["net"]


@some_and_all
def test_converting(tmp_path: Path, attempt: Attempt, clickme_root: Path, kills: int) -> None:
    place = tmp_path / "watched"
    command = ["convert", "convert", "--data-root", clickme_root, "--to", place / "parquet"]
    seen: list[dict[str, str]] = []

    def check() -> None:
        seen.append({name: sha256(place / name) for name in names_in(place) if (place / name).is_file()})
        assert seen[-1] == seen[0] and len(seen[0]) >= 3

    def begin() -> None:
        if place.exists():
            shutil.rmtree(place)
        place.mkdir()

    killed_again_and_again(attempt, command, place, kills, begin, check)


@some_and_all
def test_evaluating(tmp_path: Path, attempt: Attempt, checkpoint: Path, kills: int) -> None:
    place = tmp_path / "watched"
    given = ["--ckpt", checkpoint, "--data", "scenes", "--limit", "4", "--workers", "0", "--device", "cpu"]
    command = ["evaluate", *given, "--explainer", "grad_cam", "--out", place / "out"]
    seen: list[list[dict[str, Any]]] = []
    timed = {"seconds", "images_per_second", "explainer_seconds", "seconds_per_image", "seconds_per_image_shared"}

    def check() -> None:
        scores = json.loads((place / "out" / "scores.json").read_text())
        seen.append([{key: value for key, value in item.items() if key not in timed} for item in scores])
        assert seen[-1] == seen[0]

    killed_again_and_again(attempt, command, place, kills, place.mkdir, check)
