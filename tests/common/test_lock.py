"""One writer at a time; a lock ends with its process, and says whose it is."""

import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest

from common.errors import UserError
from common.lock import locked

HOLDER = """
import os, sys, time
from pathlib import Path
from common.lock import locked
with locked(Path(sys.argv[1]), "it", "wait"):
    if os.fork() == 0:
        print("held", flush=True)  # by the child, which has let go of the file by then
        time.sleep(60)  # a child that outlives its parent, such as a loader's process
        os._exit(0)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    started = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert started.stdout.readline() == b"held\n"
    yield started
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def test_the_second_is_refused_with_the_process_and_host_of_the_first(holder, tmp_path):
    told = rf"this is in use by process {holder.pid} on {platform.node()} since [-\d]+ [:\d]+; take another"
    with pytest.raises(UserError, match=told), locked(tmp_path / "lock", "this", "take another"):
        pass
    assert json.loads((tmp_path / "lock").read_text())["process"] == holder.pid


def test_a_lock_ends_with_its_process_though_a_child_of_it_lives(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "lock", "this", "take another"):
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_the_first_is_waited_for_and_that_is_told_once(tmp_path):
    said, order = [], []

    def hold():
        with locked(tmp_path / "lock", "this", ""):
            order.append("first")
            taken.set()
            time.sleep(0.7)
            order.append("end of the first")

    taken = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    with locked(tmp_path / "lock", "this", "", patience=30, say=said.append):
        order.append("second")
    thread.join()
    assert order == ["first", "end of the first", "second"]
    assert len(said) == 1 and "waiting up to 30 s" in said[0] and f"process {os.getpid()}" in said[0]


def test_waiting_has_an_end(holder, tmp_path):
    before = time.monotonic()
    with pytest.raises(UserError, match="in use"), locked(tmp_path / "lock", "this", "", 0.5, lambda _: None):
        pass
    assert 0.5 <= time.monotonic() - before < 10


def test_of_many_at_once_one_at_a_time_holds_it(tmp_path):
    """The file is removed at each end, so that some lock one that is there no more."""
    inside, most, times = [0], [0], [0]

    def take_turns():
        for _ in range(20):
            with locked(tmp_path / "lock", "this", "", patience=60, say=lambda _: None):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                times[0] += 1
                inside[0] -= 1

    threads = [threading.Thread(target=take_turns) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], times[0]) == (1, 80)


def test_a_lock_on_a_file_that_its_holder_has_removed_meanwhile_does_not_count(tmp_path, monkeypatch):
    real, first = fcntl.flock, iter([True])

    def flock(handle, how):
        if next(first, False):
            (tmp_path / "lock").unlink()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    refused = pytest.raises(UserError, match="in use")
    with locked(tmp_path / "lock", "this", ""), refused, locked(tmp_path / "lock", "this", ""):
        pass


def test_a_file_system_without_locks_is_told_and_others_errors_are_raised(tmp_path, monkeypatch):
    def refuse(number):
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(number, os.strerror(number))))

    said = []
    refuse(errno.EOPNOTSUPP)
    with locked(tmp_path / "lock", "this", "", say=said.append):
        pass
    assert len(said) == 1 and str(tmp_path) in said[0] and "has no locks" in said[0]
    refuse(errno.EIO)
    with pytest.raises(OSError, match="lock"), locked(tmp_path / "lock", "this", ""):
        pass
