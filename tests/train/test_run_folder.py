"""The folder of a run: made by one run alone, and nothing of others in it is touched."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from common import leftovers
from common.errors import UserError
from common.leftovers import temporary_folder
from tests.train.conftest import metrics
from tests.train.test_resume import arguments
from train.configure import load_settings
from train.runs.run_folder import RunFolder, find_run
from train.runs.snapshots import list_snapshots


def test_runs_that_choose_their_folders_at_one_instant_choose_different_ones(tmp_path: Path) -> None:
    settings = load_settings(["recipe=demo", f"runs_dir={tmp_path}"])
    found: list[Path] = []
    start = threading.Barrier(8)

    def choose() -> None:
        start.wait()
        found.append(find_run(settings)[0].path)

    for _ in range(5):
        threads = [threading.Thread(target=choose) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(found)) == 40 and all(path.is_dir() for path in found)


MINE = {
    "config.yaml": "optim: {lr: 1}\n",
    "pictures/holiday.png": "x",
    "tensorboard/events.out.tfevents.1.mine": "x",
    "metrics.jsonl": "{}\n",
    "classes.json": "[]",
    "summary.json": "{}",
    "snapshots/notes.txt": "x",
}


@pytest.mark.parametrize("resume", ["auto", "none"])
@pytest.mark.parametrize("name", MINE)
def test_a_folder_with_somebodys_files_is_refused(
    tmp_path: Path, train_here: Callable[..., Path], resume: str, name: str
) -> None:
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).write_text(MINE[name])
    with pytest.raises(UserError, match=f"holds {name.partition('/')[0]}, and no run that is known here; name another"):
        train_here(*arguments(tmp_path, "run", f"resume={resume}"))
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [tmp_path / "run" / name]
    assert (tmp_path / "run" / name).read_text() == MINE[name]


def test_of_a_run_that_died_early_only_what_runs_write_goes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.start({"lr": 1}, "python train/main.py x", ["a"])
    events = "tensorboard/events.out.tfevents.1.host"
    written = [*(f"pictures/{name}.png" for name in ("curve", "positions", "displacement", "kernels")), events]
    mine = ["pictures/holiday.png", "tensorboard/notes.txt", "notes.txt"]
    for name in (*written, *mine):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    folder.start({"lr": 2}, "python train/main.py y", None)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*mine, "config.yaml"}


def test_other_files_in_a_new_runs_folder_do_not_matter(tmp_path: Path, train_here: Callable[..., Path]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "slurm-1.out").write_text("x")
    run = train_here(*arguments(tmp_path, "run", "updates=1", "data.workers=0"))
    assert (run / "slurm-1.out").exists() and not (run / ".lock").exists()


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path, train_here: Callable[..., Path]) -> None:
    given = [*arguments(tmp_path, "run"), f"data.root={tmp_path}/nowhere"]
    for more in ([], [f"runs_dir={tmp_path}/runs", "run_dir=null"]):
        with pytest.raises(UserError, match="nowhere"):
            train_here(*given, *more)
    assert not (tmp_path / "run").exists() and not list((tmp_path / "runs" / "demo_dcls").iterdir())


def test_going_on_from_an_earlier_snapshot_removes_later_ones_only_where_that_was_asked_for(
    tmp_path: Path, train_here: Callable[..., Path]
) -> None:
    given = [*arguments(tmp_path, "run", "snapshots.every_updates=1", "snapshots.keep_last=9"), "data.workers=0"]
    run = train_here(*given, "updates=3")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    place = run / "snapshots" / "update_00000001"
    told = rf"2 newer snapshots, to update_00000003, would be removed\. Go on from the newest by resume={run}, or add "
    with pytest.raises(UserError, match=told + "overwrite=true"):
        train_here(*given, "updates=2", f"resume={place}")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    train_here(*given, "updates=2", f"resume={place}", "overwrite=true")
    assert [p.name for p in list_snapshots(run / "snapshots")] == ["update_00000001", "update_00000002"]
    train_here(*given, "updates=3", f"resume={run / 'snapshots' / 'update_00000002'}")  # nothing is newer
    assert metrics(run, "train/loss").keys() == {1, 2, 3}


@pytest.mark.parametrize(
    "place", ["copy/update_00000001", "run/snapshots/mine", "run/snapshots/update_00000001 (copy)"]
)
def test_a_snapshot_outside_its_run_is_no_place_to_go_on(tmp_path: Path, place: str) -> None:
    """Its run would be the folder that happens to lie two above."""
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "state.json").write_text("{}")
    with pytest.raises(UserError, match="no run or snapshot there"):
        find_run(load_settings(["recipe=demo", f"resume={tmp_path / place}"]))


def test_a_finished_run_that_is_resumed_tells_its_last_validation_once(
    tmp_path: Path, train_here: Callable[..., Path]
) -> None:
    given = [*arguments(tmp_path, "run", "updates=2"), "data.workers=0"]
    run = train_here(*given)
    before = (run / "metrics.jsonl").read_text()
    for _ in range(2):
        train_here(*given, "resume=auto")
        assert (run / "metrics.jsonl").read_text() == before
    lines = before.splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if "val_" not in line))
    train_here(*given, "resume=auto")  # it was lost, so it is told again
    assert sorted((run / "metrics.jsonl").read_text().splitlines(keepends=True)) == sorted(lines)


def test_what_a_killed_run_was_writing_goes_whatever_host_it_ran_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("snapshots/update_00000001", "pictures/curve.png", "config.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr(leftovers, "_host", lambda: "0123abcd")
            temporary_folder(tmp_path / name)
    with RunFolder(tmp_path).taken(0.0):
        assert {path.name for path in tmp_path.rglob("*")} == {"snapshots", "pictures", ".lock"}
