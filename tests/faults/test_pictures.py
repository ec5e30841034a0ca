"""Files that claim to be images: each reader refuses them in one line, with little memory, soon, and starts nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.hostile_images import HOSTILE, encoded

ROOT = Path(__file__).parents[2]
READERS = ("train", "validate", "evaluate", "explain")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What each reader says of each file; a stand-in for Ghostscript would leave a mark."""
    root = tmp_path_factory.mktemp("hostile")
    contents = {"sound.png": encoded("PNG"), **{name: content for name, (content, _) in HOSTILE.items()}}
    for name, content in contents.items():
        for part in ("train", "val"):
            place = root / "files" / name / part / "a" / name
            place.parent.mkdir(parents=True)
            place.write_bytes(content)
    (root / "bin").mkdir()
    for program in ("gs", "gswin64c", "gswin32c"):
        (root / "bin" / program).write_text(f"#!/bin/sh\ntouch {root}/started\nexit 1\n")
        (root / "bin" / program).chmod(0o755)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    env["PATH"] = f"{root / 'bin'}:{env['PATH']}"
    command = [sys.executable, "-m", "tests.faults.read_hostile", str(root / "files")]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return {**json.loads(run.stdout.splitlines()[-1]), "started": {"gs": str((root / "started").exists())}}


def test_a_sound_image_is_read(told: dict[str, dict[str, str]]) -> None:
    assert told["sound.png"] == {"train": "decoded", "validate": "decoded", "evaluate": "decoded"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_by_every_reader(name: str, told: dict[str, dict[str, str]]) -> None:
    assert set(told[name]) == set(READERS)
    for reader, text in told[name].items():
        assert re.search(HOSTILE[name][1], text), (reader, text)
        assert f"a/{name} does not decode" in text and "\n" not in text and "MemoryError" not in text, (reader, text)


def test_no_file_starts_a_program(told: dict[str, dict[str, str]]) -> None:
    assert told["started"] == {"gs": "False"}
