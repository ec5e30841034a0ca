"""Run our commands in forked children that die at a chosen change of a watched folder, as if by `kill -9`.

A program of its own: torch is loaded once, and each line of JSON on standard input is an attempt, answered by a line.

    {"command": "train", "arguments": [...], "watched": FOLDER, "dies_at": N or null, "log": FILE}

where somebody else is waited for, it is for half a second;
    {"status": exit status, below 0 a signal's number; "changes": how many there were, if it came to its end}
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import atomic
from common.entry import run_command
from evaluate.cli import main as cli
from evaluate.clickme import command as clickme_tools
from train import publish
from train import run as trainer
from train.runs import resume

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": trainer.main, "publish": publish.main, "evaluate": cli.main, "convert": clickme_tools.main,
}  # fmt: skip
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
_WRITING = os.O_WRONLY | os.O_RDWR


class Watch:
    """Counts what changes in a folder, and kills this process just before the change of a number."""

    def __init__(self, folder: str, dies_at: int | None) -> None:
        self.folder, self.dies_at, self.count = folder, dies_at, 0
        sys.addaudithook(self.hear)
        sync, exchange = os.fsync, atomic.exchange
        os.fsync = lambda handle: self.change(os.readlink(f"/proc/self/fd/{handle}")) or sync(handle)  # type: ignore
        atomic.exchange = lambda one, other: self.change(str(other)) or exchange(one, other)

    def hear(self, event: str, given: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and isinstance(given[2], int) and given[2] & _WRITING):
            if not isinstance(given[0], str | bytes | os.PathLike):
                return
            path, within = os.fsdecode(given[0]), given[-1]
            if event != "open" and not os.path.isabs(path) and isinstance(within, int) and within >= 0:
                path = os.path.join(os.readlink(f"/proc/self/fd/{within}"), path)
            self.change(path)

    def change(self, path: str) -> None:
        if path.startswith(self.folder):
            self.count += 1
            if self.count == self.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)


def attempt(asked: dict[str, Any], answer: int) -> None:
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    resume.LAST_BREATH = publish.PATIENCE = 0.5
    watch = Watch(asked["watched"], asked["dies_at"])
    status = run_command(lambda: COMMANDS[asked["command"]](asked["arguments"]))
    os.write(answer, json.dumps({"status": status, "changes": watch.count}).encode())


def serve() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        Path(asked["log"]).parent.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                attempt(asked, writing)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            told = file.read()
        _, status = os.waitpid(child, 0)
        found = json.loads(told) if told else {"status": os.waitstatus_to_exitcode(status), "changes": None}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
