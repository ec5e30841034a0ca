"""A run that was killed or stopped goes on as if nothing had happened, to the bit, through the real launchers."""

import errno
import json
import os
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from common.checkpoint import read_config
from common.entry import run_command
from common.errors import UserError
from tests.train.conftest import ROOT, Launched, children, make_photographs, metrics, running
from train.configure import load_settings
from train.losses import classification
from train.publish import publish_run
from train.runs.run_folder import RunFolder, find_run, start_of
from train.runs.snapshots import clean_snapshots, list_snapshots, newest_snapshot
from train.stopping import Stop, StopListener

UPDATES = 10
LIMIT = 300
"""Seconds after which waiting is given up; far more than a slow machine needs."""
Launch = Callable[..., Launched]


def arguments(tmp_path: Path, run: str, *more: str) -> list[str]:
    """Photographs, mixup, cutmix, EMA and accumulation on; 18 pictures, so epochs end within updates."""
    if not (tmp_path / "photos").exists():
        make_photographs(tmp_path / "photos")
    return [
        "recipe=demo_dcls",
        "data.source=imagefolder",
        f"data.root={tmp_path}/photos",
        "data.val_fraction=0.25",
        "data.image_size=32",
        "data.eval_size=32",
        "data.workers=1",
        f"updates={UPDATES}",
        "global_batch=8",
        "batch_size=2",
        "augment.mixup=0.2",
        "augment.cutmix=1.0",
        "augment.auto=rand-m9-mstd0.5-inc1",
        "augment.erase_prob=0.25",
        "optim.name=adamw",
        "optim.lr=1e-2",
        "ema.decay=0.9",
        "threads=1",
        "log.every=1",
        "log.validate_every=1",
        "log.tensorboard=false",
        "snapshots.every_updates=3",
        "publish=false",
        f"run_dir={tmp_path}/{run}",
        *more,
    ]


def wait_for(condition: Callable[[], Any], seconds: float = LIMIT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def updates_done(run: Path) -> int:
    return len(metrics(run, "train/loss"))


def whole_run(tmp_path: Path, launch: Launch, processes: int) -> Path:
    run = launch(arguments(tmp_path, "whole"), processes)
    assert run.returncode == 0
    assert f"{processes} process(es)" in run.output
    return tmp_path / "whole"


def assert_same(one: Path, two: Path) -> None:
    """Every figure that is not about time is the same to the bit, and so are the last weights."""

    def figures(run: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]

    assert figures(one) == figures(two)
    last = [torch.load(list_snapshots(r / "snapshots")[-1] / "state.pt", weights_only=True) for r in (one, two)]
    for part in (lambda s: s["model"], lambda s: s["ema"]["model"]):
        first, second = (part(state) for state in last)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path, launch: Launch, processes: int) -> None:
    whole = whole_run(tmp_path, launch, processes)
    assert metrics(whole, "train/loss").keys() == set(range(1, UPDATES + 1))
    killed = launch(arguments(tmp_path, "killed"), processes, wait=False)
    wait_for(lambda: updates_done(tmp_path / "killed") >= 5 or killed.poll() is not None)
    for pid in [*children(killed.pid), killed.pid] if processes > 1 else [killed.pid]:
        os.kill(pid, signal.SIGKILL)
    killed.wait()
    assert 5 <= updates_done(tmp_path / "killed") < UPDATES
    resumed = launch(arguments(tmp_path, "killed", "resume=auto"), processes)
    assert resumed.returncode == 0
    assert "continuing" in resumed.output
    assert_same(whole, tmp_path / "killed")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130)])
def test_a_signal_stops_with_a_snapshot_of_the_last_update(
    tmp_path: Path, launch: Launch, number: int, status: int
) -> None:
    stopped = launch(arguments(tmp_path, "stopped", "snapshots.every_updates=null", "updates=400"), wait=False)
    wait_for(lambda: updates_done(tmp_path / "stopped") >= 2)
    os.kill(stopped.pid, number)
    assert stopped.wait(timeout=LIMIT) == status
    place = list_snapshots(tmp_path / "stopped" / "snapshots")
    done = updates_done(tmp_path / "stopped")
    assert len(place) == 1 and int(place[0].name.removeprefix("update_")) == done < 400


def test_sigterm_then_resume_is_the_whole_run_with_two_processes(tmp_path: Path, launch: Launch) -> None:
    whole = whole_run(tmp_path, launch, 2)
    stopped = launch(arguments(tmp_path, "stopped", "snapshots.every_updates=null"), 2, wait=False)
    wait_for(lambda: updates_done(tmp_path / "stopped") >= 3)
    stopped.terminate()  # torchrun passes it on
    stopped.wait(timeout=LIMIT)
    wait_for(lambda: list_snapshots(tmp_path / "stopped" / "snapshots"))
    assert updates_done(tmp_path / "stopped") < UPDATES
    assert launch(arguments(tmp_path, "stopped", "resume=auto"), 2).returncode == 0
    assert_same(whole, tmp_path / "stopped")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_trainers_whose_torchrun_has_gone_write_a_snapshot(tmp_path: Path, launch: Launch, number: int) -> None:
    launcher = launch(arguments(tmp_path, "orphan", "snapshots.every_updates=null", "updates=400"), 2, wait=False)
    wait_for(lambda: updates_done(tmp_path / "orphan") >= 2)
    ranks = children(launcher.pid)
    assert len(ranks) == 2
    os.kill(launcher.pid, number)
    wait_for(lambda: list_snapshots(tmp_path / "orphan" / "snapshots"))
    wait_for(lambda: not any(running(pid) for pid in ranks))
    assert updates_done(tmp_path / "orphan") < 400


def test_accelerate_launch_that_dies_of_sigterm(tmp_path: Path, launch: Launch) -> None:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    given = arguments(tmp_path, "accelerate", "snapshots.every_updates=null", "updates=400")
    started = launch(given, launcher=launcher, wait=False)
    wait_for(lambda: updates_done(tmp_path / "accelerate") >= 2)
    ranks = children(started.pid)
    assert len(ranks) == 1
    started.terminate()
    wait_for(lambda: list_snapshots(tmp_path / "accelerate" / "snapshots"))
    wait_for(lambda: not running(ranks[0]))


# --- in one process -----------------------------------------------------------------------------------------------


def test_a_damaged_newest_snapshot_is_reported_and_the_one_before_it_taken(
    tmp_path: Path, train_here: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    dropout = ["model=timm:resnet10t", "model_args.drop_rate=0.5"]  # so that the model draws random numbers, too
    given = [*arguments(tmp_path, "run"), "data.workers=0", *dropout]
    whole = train_here(*given, "updates=6", "snapshots.every_updates=2", "snapshots.keep_last=3")
    shutil.copytree(whole, tmp_path / "whole")
    newest = list_snapshots(whole / "snapshots")[-1]
    content = bytearray((newest / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "state.pt").write_bytes(content)
    train_here(*given, "updates=6", "snapshots.every_updates=2", "resume=auto")
    reported = capsys.readouterr().err
    assert (
        "update_00000006 is damaged: state.pt is not what was written" in reported
        and "taking the one before" in reported
    )
    assert "after update 4" in reported
    assert_same(tmp_path / "whole", whole)


def test_another_number_of_processes_is_said(
    tmp_path: Path, launch: Launch, train_here: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(arguments(tmp_path, "two", "updates=3"), 2).returncode == 0
    train_here(*arguments(tmp_path, "two", "updates=5", "resume=auto", "data.workers=0"))
    reported = capsys.readouterr().err
    assert "made with 2 process(es), now there are 1. The order of the data changes" in reported
    assert metrics(tmp_path / "two", "train/loss").keys() == {1, 2, 3, 4, 5}


def test_what_cannot_change_is_refused_by_name(tmp_path: Path, train_here: Callable[..., Path]) -> None:
    given = [*arguments(tmp_path, "run", "updates=2"), "data.workers=0"]
    train_here(*given)
    for change, name in (
        ("seed=1", "seed=0"),
        ("global_batch=4", "global_batch=8"),
        ("data.val_fraction=0.5", "images"),
        ("optim.name=lamb", "optim.name=adamw, this run has lamb; the optimiser's state would be another"),
        ("optim.decay_norm_bias=true", "optim.decay_norm_bias=False"),
        ("dcls.interpolation=v0", "dcls="),
        ("num_classes=4", "num_classes=3"),
        ("updates=1", "has done 2 updates, and this run ends after 1. Give it more"),
    ):
        with pytest.raises(UserError, match=re.escape(name)):
            train_here(*given, change, "resume=auto")
    with pytest.raises(UserError, match="holds a run already"):
        train_here(*given)
    with pytest.raises(UserError, match="no run or snapshot"):
        train_here(*given, f"resume={tmp_path}/nowhere")


def test_a_run_that_died_before_its_first_snapshot_starts_over_in_its_folder(
    tmp_path: Path, train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*arguments(tmp_path, "run", "snapshots.every_updates=null", "updates=3"), "data.workers=0"]
    given += ["log.tensorboard=true"]
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("train.loop.save_snapshot", lambda *_: (_ for _ in ()).throw(MemoryError))
        train_here(*given)
    assert updates_done(tmp_path / "run") == 3
    events = list((tmp_path / "run" / "tensorboard").iterdir())
    with pytest.raises(UserError, match="holds a run already"):
        train_here(*given)
    run = train_here(*given, "resume=auto")
    assert [line["update"] for line in RunFolder(run).read_metrics() if "train/loss" in line] == [1, 2, 3]
    assert events and not any(file.exists() for file in events)


def test_a_finished_run_that_is_resumed_publishes_the_same_again(
    tmp_path: Path, train_here: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*arguments(tmp_path, "run", "updates=2", "publish=true"), "data.workers=0"]
    published = tmp_path / "checkpoints" / "demo_dcls"
    summaries, hashes = [], []
    for _ in range(2):
        run = train_here(*given, "resume=auto")
        summaries.append((run / "summary.json").read_text())
        hashes.append(read_config(published).weights_sha256)
        advice = "--data imagefolder --data-root DIR"  # three classes; ClickMe's are the 1000 of ImageNet
        assert f"{published} {advice}\n" in capsys.readouterr().err
        assert f"checkpoints/demo_dcls {advice}\n" in (published / "README.md").read_text()
        shutil.rmtree(published)
    assert summaries[0] == summaries[1] and hashes[0] == hashes[1]


def test_a_stopped_run_is_published_with_its_own_figures(
    tmp_path: Path, train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had finished before, was given more updates, and was killed while it wrote a line of metrics."""
    given = [*arguments(tmp_path, "run"), "data.workers=0"]
    run = train_here(*given, "updates=2")
    after_updates = lambda _, *due: (Stop.SIGNAL if due else Stop.NO, bool(due))  # noqa: E731
    monkeypatch.setattr(StopListener, "agree", after_updates)
    train_here(*given, "updates=6", "resume=auto")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "train/lo')
    figures = read_config(publish_run(run, "stopped", tmp_path)).metrics
    assert figures["updates"] == 3 and figures["stopped_early"]


def test_a_resumed_run_learns_as_its_own_settings_say(tmp_path: Path, train_here: Callable[..., Path]) -> None:
    """Weight decay, the rate of positions, betas and eps; the snapshot's own come back where nothing changed."""
    given = [*arguments(tmp_path, "run"), "data.workers=0", "snapshots.keep_last=9", "snapshots.every_updates=1"]

    def settings(run: Path, update: int) -> dict[str, tuple[Any, ...]]:
        place = run / "snapshots" / f"update_{update:08d}" / "state.pt"
        groups = torch.load(place, weights_only=True)["optimizer"]["param_groups"]
        return {g["kind"]: (g["weight_decay"], g["lr_scale"], tuple(g["betas"]), g["eps"]) for g in groups}

    first = ["optim.weight_decay=0.1", "positions.lr_scale=3", "optim.args={betas: [0.7,0.9], eps: 1.0e-5}"]
    run = train_here(*given, *first, "updates=1")
    assert settings(run, 1)["decay"] == (0.1, 1.0, (0.7, 0.9), 1e-5)
    assert settings(run, 1)["positions"] == (0.0, 3.0, (0.7, 0.9), 1e-5)
    second = ["optim.weight_decay=0.2", "positions.lr_scale=2", "optim.args={betas: [0.8,0.95], eps: 1.0e-6}"]
    train_here(*given, *second, "updates=2", "resume=auto")
    assert settings(run, 2)["decay"] == (0.2, 1.0, (0.8, 0.95), 1e-6)
    assert settings(run, 2)["positions"] == (0.0, 2.0, (0.8, 0.95), 1e-6)
    config = yaml.safe_load((run / "config.yaml").read_text())  # what is published is what was run
    assert config["optim"]["weight_decay"] == 0.2 and config["updates"] == 2


def test_more_updates_than_a_run_is_to_have_are_one_line(tmp_path: Path, launch: Launch) -> None:
    assert launch(arguments(tmp_path, "run", "updates=3")).returncode == 0
    run = launch(arguments(tmp_path, "run", "updates=2", "resume=auto"))
    assert run.returncode == 2 and "Traceback" not in run.output
    assert run.output.count("error: ") == 1 and "Give it more (updates=N or epochs=N)" in run.output


RANK_ONE_READS_OTHERWISE = """
    import os, sys
    sys.path.insert(0, {root!r})
    from train.run import main
    from train.runs import resume, run_folder
    read = resume.read_snapshot
    if os.environ["RANK"] == "1":
        everything = run_folder.list_snapshots
        run_folder.list_snapshots = lambda folder: everything(folder)[:-1]  # a listing that is not up to date
        def stale(place):
            content, record = read(place)
            return content, record | {changed}
        resume.read_snapshot = stale
    sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("changed", [{}, {"sha256": "of another file"}])
def test_all_ranks_read_the_snapshot_that_the_first_one_chose(
    tmp_path: Path, launch: Launch, changed: dict[str, str]
) -> None:
    given = arguments(tmp_path, "run", "snapshots.every_updates=1")
    assert launch([*given, "updates=2"], 2).returncode == 0
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(RANK_ONE_READS_OTHERWISE).format(root=str(ROOT), changed=changed))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(program)]
    run = launch([*given, "updates=3", "resume=auto"], launcher=launcher)
    if changed:
        assert run.returncode != 0
        assert "update_00000002 is not the same for all ranks" in run.output and "of another file" in run.output
    else:
        assert run.returncode == 0 and metrics(tmp_path / "run", "train/loss").keys() == {1, 2, 3}
        assert "after update 2" in run.output


def test_a_snapshot_that_finds_no_room_says_what_is_kept(
    tmp_path: Path,
    train_here: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [*arguments(tmp_path, "run", "snapshots.every_updates=1"), "data.workers=0"]
    train_here(*given, "updates=1")

    def full(content: Any, place: Path) -> None:
        place.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("train.runs.snapshots.torch.save", full)
    assert run_command(lambda: int(bool(train_here(*given, "updates=2", "resume=auto")))) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(r"update_00000002: No space left on device; .*/update_00000001 is kept, resume=auto goes on", said)
    assert [place.name for place in (tmp_path / "run" / "snapshots").iterdir()] == ["update_00000001"]


def test_retention(tmp_path: Path) -> None:
    for update in range(1, 11):
        (tmp_path / f"update_{update:08d}").mkdir()
    clean_snapshots(tmp_path, keep_last=2, keep_every=4)
    assert [int(p.name[7:]) for p in list_snapshots(tmp_path)] == [4, 8, 9, 10]
    with pytest.raises(UserError, match=r"no whole snapshot \(4 damaged\)"):
        newest_snapshot(tmp_path)


def test_auto_takes_the_newest_run_that_left_a_snapshot(tmp_path: Path, train_here: Callable[..., Path]) -> None:
    settings = load_settings(["recipe=demo", f"runs_dir={tmp_path}", "resume=auto"])
    folder, named = find_run(settings)
    assert start_of(settings, folder, named) is None and folder.path.parent == tmp_path / "demo"
    train_here(*arguments(tmp_path, "demo/20260101", "updates=1", "data.workers=0"))
    (tmp_path / "demo" / "20260102").mkdir()
    found = find_run(settings)
    assert found == (RunFolder(tmp_path / "demo" / "20260101"), None)
    assert start_of(settings, *found) == tmp_path / "demo" / "20260101" / "snapshots" / "update_00000001"


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_snapshot(
    tmp_path: Path, train_here: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = classification.classification_loss
    calls = iter(range(1000))

    def poisoned(*given: Any) -> torch.Tensor:
        loss = real(*given)
        return loss * float("nan") if next(calls) == 4 * 4 + 1 else loss  # in the fifth update

    monkeypatch.setattr(classification, "classification_loss", poisoned)
    given = [*arguments(tmp_path, "run", "snapshots.every_updates=2"), "data.workers=0", "log.every=100"]
    with pytest.raises(UserError, match="not finite in update 5, rank 0"):
        train_here(*given)
    assert [p.name for p in list_snapshots(tmp_path / "run" / "snapshots")] == ["update_00000002", "update_00000004"]
