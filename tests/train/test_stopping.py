"""Signals: answered at once, obeyed between micro-batches, and never costing a bit of the run."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.conftest import ROOT, Launched, metrics
from tests.train.test_resume import arguments, assert_same, wait_for
from train.runs.snapshots import list_snapshots
from train.stopping import Stop, StopListener

LISTENS = """
    import hashlib, os, signal, sys
    from train.stopping import StopListener
    listener = StopListener()
    print("listening", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})  # one instruction of Python that takes seconds
    print("done", listener.wish.name, flush=True)
"""


def listening(rounds: int) -> subprocess.Popen[str]:
    """A process that listens for signals while Python cannot run a handler."""
    program = textwrap.dedent(LISTENS).format(rounds=rounds)
    command = [sys.executable, "-u", "-c", program]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert started.stdout is not None and started.stdout.readline() == "listening\n"
    return started


@pytest.mark.parametrize(("number", "wish"), [(signal.SIGINT, "INTERRUPT"), (signal.SIGTERM, "SIGNAL")])
def test_a_signal_is_announced_before_the_instruction_at_hand_ends(number: signal.Signals, wish: str) -> None:
    process = listening(3_000_000)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    announced, done = said.splitlines()
    assert announced == f"{number.name}: stopping after this micro-batch, with a snapshot; again to stop now"
    assert done == f"done {wish}" and process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    process = listening(2_000_000_000)  # would take an hour
    assert process.stdout is not None
    process.send_signal(number)
    assert "again to stop now" in process.stdout.readline()
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number and "without a snapshot" in said and "done" not in said


def test_what_a_launcher_passes_on_is_no_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches torchrun and its trainers, and torchrun sends it to them again."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("the process would have ended"))
    listener = StopListener()
    try:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert listener.wish is Stop.INTERRUPT
    finally:
        listener.close()


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    StopListener().close()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    assert signal.set_wakeup_fd(-1) == -1


# --- in training ----------------------------------------------------------------------------------------------

STOPS_WITHIN = """
    import sys
    sys.path.insert(0, {root!r})
    from train.run import main
    from train.stopping import Stop, StopListener
    agree, calls = StopListener.agree, []
    def struck(self, *due):
        calls.append(due)
        return (Stop.SIGNAL, True) if len(calls) == {call} else agree(self, *due)
    StopListener.agree = struck
    sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_an_update_is_given_up_between_its_micro_batches_and_the_run_continues_to_the_same_bits(
    tmp_path: Path, launch: Callable[..., Launched], processes: int
) -> None:
    """With BatchNorm, dropout, mixup, an average of the weights and four or two micro-batches per update."""
    model = ["model=timm:resnet10t", "model_args.drop_rate=0.5", "log.every=3"]
    assert launch(arguments(tmp_path, "whole", *model), processes).returncode == 0
    calls_per_update = 4 // processes
    call = 4 * calls_per_update + calls_per_update - 1  # before the last micro-batch of update 5
    program = tmp_path / "struck.py"
    program.write_text(textwrap.dedent(STOPS_WITHIN).format(root=str(ROOT), call=call))
    launcher = [sys.executable, str(program)]
    if processes > 1:
        more = ["--nproc_per_node", str(processes), "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        launcher[1:1] = ["-m", "torch.distributed.run", *more]
    given = arguments(tmp_path, "struck", "snapshots.every_updates=null", *model)
    stopped = launch(given, launcher=launcher)
    assert stopped.returncode == 0, stopped.output
    assert "stopped after update 4" in stopped.output
    assert [place.name for place in list_snapshots(tmp_path / "struck" / "snapshots")] == ["update_00000004"]
    assert launch([*given, "resume=auto"], processes).returncode == 0
    assert_same(tmp_path / "whole", tmp_path / "struck")


def test_a_second_ctrl_c_ends_the_run_without_a_snapshot(tmp_path: Path, launch: Callable[..., Launched]) -> None:
    large = ["data.source=scenes", "data.image_size=64", "global_batch=1024", "batch_size=512", "data.workers=0"]
    given = arguments(tmp_path, "run", *large, "data.train_images=2048", "updates=400", "snapshots.every_updates=null")
    run = launch(given, wait=False)
    wait_for(lambda: metrics(tmp_path / "run", "train/loss") or run.poll() is not None)
    run.send_signal(signal.SIGINT)
    wait_for(lambda: "again to stop now" in run.output)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=300) == 130
    assert not list_snapshots(tmp_path / "run" / "snapshots")
