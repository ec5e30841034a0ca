"""How commands end: what is told in one line, and what is a fault of ours."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.entry import run_command

ROOT = Path(__file__).parents[2]
COMMANDS = [
    ["train/main.py", "recipe=demo"],
    *(["-m", name] for name in ("evaluate", "evaluate.clickme", "train.publish")),
]


@pytest.mark.parametrize("number", [errno.EBUSY, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.EREMOTEIO])
def test_whatever_the_file_system_refuses_by_name_is_told(number, capsys):
    def main():
        raise OSError(number, os.strerror(number), "place")

    assert run_command(main) == 2
    assert capsys.readouterr().err.startswith(f"error: place: {os.strerror(number)}; ")


def test_control_characters_in_a_message_have_no_effect(capsys):
    def main():
        raise PermissionError(errno.EACCES, "", "a\x1b]0;b\x07\u202ec\udc80")

    assert run_command(main) == 2
    assert "a\\x1b]0;b\\x07\\u202ec\\udc80: Permission denied" in capsys.readouterr().err


class Dies(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_loader_process_that_dies_is_told(capsys):
    assert run_command(lambda: list(torch.utils.data.DataLoader(Dies(), num_workers=2))) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: a loader's process died (DataLoader worker") and "Fewer workers" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_ctrl_c_while_libraries_are_imported(command, tmp_path):
    # torch is replaced by one that takes longer than this test waits
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    (tmp_path / "numpy.py").write_text("import torch\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    assert (process.returncode, told) == (130, "interrupted\n")
