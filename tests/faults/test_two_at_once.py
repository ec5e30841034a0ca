"""Two of everything at once: the second is refused in one line that names the first, and both lose nothing."""

import os
import platform
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from common.checkpoint import load_checkpoint
from common.lock import locked
from evaluate.cli.claim import LOCK
from tests.faults.conftest import ROOT, Attempt, Ended
from tests.train.conftest import Launched, children, launch, metrics  # noqa: F401
from tests.train.test_resume import arguments, updates_done, wait_for
from train.runs.run_folder import RunFolder

ME = f"is in use by process {os.getpid()} on {platform.node()} since "
IMPATIENT = """
    import sys
    sys.path.insert(0, {root!r})
    from common.entry import run_command
    from train.run import main
    from train.runs import resume
    resume.LAST_BREATH = {patience}
    sys.exit(run_command(lambda: main(sys.argv[2:])))
"""


def refused(ended: Ended, what: str) -> None:
    (line,) = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert ended.status == 2 and line.startswith(f"error: {what}") and "Traceback" not in ended.output, ended.output


@pytest.mark.parametrize("resume", ["none", "auto"])
def test_a_second_trainer_in_a_folder_is_refused(tmp_path: Path, attempt: Attempt, resume: str) -> None:
    given = ["train", *arguments(tmp_path, "run", "data.workers=0", "updates=1", f"resume={resume}")]
    with RunFolder(tmp_path / "run").taken(0.0):
        ended = attempt(*given)
        refused(ended, f"the run {tmp_path / 'run'} {ME}")
        assert ("waiting up to" in ended.output) == (resume == "auto")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert attempt(*given).status == 0


def test_a_second_evaluation_into_a_folder_is_refused(tmp_path: Path, attempt: Attempt, checkpoint: Path) -> None:
    given = ["--ckpt", checkpoint, "--data", "scenes", "--limit", "2", "--workers", "0", "--device", "cpu"]
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / LOCK, "", ""):
        refused(attempt("evaluate", *given, "--out", tmp_path / "out"), f"--out {tmp_path / 'out'} {ME}")
    assert attempt("evaluate", *given, "--out", tmp_path / "out").status == 0


def test_a_second_conversion_into_a_folder_is_refused(tmp_path: Path, attempt: Attempt, clickme_root: Path) -> None:
    given = ["convert", "convert", "--data-root", clickme_root, "--to", tmp_path / "parquet"]
    with locked(tmp_path / ".parquet.lock", "", ""):
        refused(attempt(*given), f"--to {tmp_path / 'parquet'} {ME}")
    assert attempt(*given).status == 0


def test_a_second_publisher_of_a_name_waits_and_is_refused(tmp_path: Path, attempt: Attempt) -> None:
    assert attempt("train", *arguments(tmp_path, "run", "data.workers=0", "updates=1")).status == 0
    given = ["publish", tmp_path / "run", "--name", "net", "--checkpoints", tmp_path / "library"]
    (tmp_path / "library").mkdir()
    with locked(tmp_path / "library" / ".net.lock", "", ""):
        ended = attempt(*given)
        refused(ended, f"the name net in {tmp_path / 'library'} {ME}")
        assert "waiting up to" in ended.output
        assert attempt(*given[:3], "other", *given[4:]).status == 0
    assert attempt(*given).status == 0


def test_of_two_runs_that_are_published_under_one_name_at_once_one_is(tmp_path: Path, attempt: Attempt) -> None:
    for seed in (0, 1):
        given = arguments(tmp_path, f"run{seed}", "data.workers=0", "updates=1", f"seed={seed}")
        assert attempt("train", *given).status == 0
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "train.publish", "--name", "net", "--checkpoints", str(tmp_path / "library")]
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen([*command, str(tmp_path / f"run{seed}")], cwd=ROOT, env=env, stderr=pipe, text=True)
        for seed in (0, 1)
    ]
    said = [publisher.communicate(timeout=300)[1] for publisher in both]
    assert sorted(publisher.returncode for publisher in both) == [0, 2], said
    (loser,) = [text for publisher, text in zip(both, said) if publisher.returncode == 2]
    assert loser.splitlines()[-1].startswith(f"error: {tmp_path / 'library' / 'net'} holds the checkpoint of another")
    winner = next(seed for seed, publisher in enumerate(both) if publisher.returncode == 0)
    assert load_checkpoint(tmp_path / "library" / "net")[1].recipe["seed"] == winner
    assert [path.name for path in (tmp_path / "library").iterdir()] == ["net"]


def impatient(tmp_path: Path, patience: float, processes: int = 1) -> list[str]:
    program = tmp_path / "impatient.py"
    program.write_text(textwrap.dedent(IMPATIENT).format(root=str(ROOT), patience=patience))
    if processes == 1:
        return [sys.executable, str(program)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return [*launcher, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(program)]


@pytest.mark.slow
def test_all_ranks_of_a_second_job_end_with_the_first_ones_process(
    tmp_path: Path,
    launch: Callable[..., Launched],  # noqa: F811
) -> None:
    first = launch(arguments(tmp_path, "run", "updates=400"), wait=False)
    wait_for(lambda: updates_done(tmp_path / "run") >= 2)
    second = launch(arguments(tmp_path, "run", "updates=400", "resume=auto"), launcher=impatient(tmp_path, 1.0, 2))
    assert second.returncode != 0 and second.output.count("error: the run") == 1
    assert f"is in use by process {first.pid} on " in second.output and "Traceback" not in second.output.split("\nE")[0]
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=300) == 0
    updates = [*metrics(tmp_path / "run", "train/loss")]
    assert updates == list(range(1, len(updates) + 1))  # of one trainer


@pytest.mark.slow
def test_a_job_that_is_put_in_the_queue_again_waits_for_the_end_of_the_one_before(
    tmp_path: Path,
    launch: Callable[..., Launched],  # noqa: F811
) -> None:
    """Whose torchrun died, and whose trainers write their last snapshot."""
    given = arguments(tmp_path, "run", "updates=400")
    before = launch(given, 2, wait=False)
    wait_for(lambda: updates_done(tmp_path / "run") >= 2)
    assert len(children(before.pid)) == 2
    again = launch([*given, "resume=auto"], 2, launcher=impatient(tmp_path, 120.0, 2), wait=False)
    wait_for(lambda: "waiting up to 120 s for its end" in again.output)
    os.kill(before.pid, signal.SIGKILL)
    wait_for(lambda: "continuing" in again.output)
    wait_for(lambda: "update" in again.output.partition("resumed run")[2])
    again.terminate()
    again.wait(timeout=300)
    lines = RunFolder(tmp_path / "run").read_metrics()
    updates = [line["update"] for line in lines if "train/loss" in line]
    assert updates == list(range(1, len(updates) + 1))
