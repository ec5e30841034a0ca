"""Commands that are killed at a chosen change of a file."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.conftest import checkpoint, clickme_root  # noqa: F401

ROOT = Path(__file__).parents[2]


@dataclass
class Ended:
    """How an attempt ended."""

    status: int
    changes: int | None
    output: str


Attempt = Callable[..., Ended]


@pytest.fixture(scope="session")
def attempts() -> Iterator[subprocess.Popen[str]]:
    env = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.faults.attempts"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | env, stdin=pipe, stdout=pipe, text=True) as server:
        yield server
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture
def attempt(attempts: subprocess.Popen[str], tmp_path: Path) -> Attempt:
    """Run a command in a process of its own, which dies at the n-th change of a folder if that is asked for."""
    assert attempts.stdin is not None and attempts.stdout is not None

    def run(command: str, *arguments: object, watched: Path | None = None, dies_at: int | None = None) -> Ended:
        log = tmp_path / "attempt.log"
        log.unlink(missing_ok=True)
        asked: dict[str, Any] = {"command": command, "arguments": [*map(str, arguments)], "log": str(log)}
        asked |= {"watched": str(watched or tmp_path), "dies_at": dies_at}
        assert attempts.stdin is not None and attempts.stdout is not None
        attempts.stdin.write(json.dumps(asked) + "\n")
        attempts.stdin.flush()
        return Ended(**json.loads(attempts.stdout.readline()), output=log.read_text())

    return run


def spread(changes: int, kills: int) -> list[int]:
    """So many numbers of changes, from the first to the last."""
    return sorted({1 + round(place * (changes - 1) / (kills - 1)) for place in range(kills)})
