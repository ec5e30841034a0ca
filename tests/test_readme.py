"""What the README shows is what the commands take."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from common.models.zoo import create_model
from evaluate.cli import explain as photographs
from evaluate.cli.main import parser
from train.configure import load_settings
from train.usage import usage

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"^```\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE))
LINES = [
    re.sub(r"[][]|\s#.*", "", line).replace("...", "x").strip()
    for line in BLOCKS.replace("\\\n", " ").splitlines()
    if line.startswith(("python ", "accelerate "))
]


def words_after(line: str, start: str) -> list[str]:
    return shlex.split(line.partition(start)[2])


@pytest.mark.parametrize("line", LINES)
def test_every_command_is_understood(line: str, tmp_path: Path) -> None:
    if "train/main.py" in line:
        words = words_after(line, "train/main.py")
        if "--help" in words:
            assert usage([word for word in words if word != "--help"])
        elif words:  # without any it lists the recipes
            load_settings(words)
    elif "-m evaluate explain" in line:
        photographs.parser().parse_args(words_after(line, "-m evaluate explain"))
    else:
        parser().parse_args(words_after(line, "-m evaluate"))


def test_commands_were_found() -> None:
    assert len(LINES) >= 12 and sum("train/main.py" in line for line in LINES) >= 4


def test_every_option_named_in_the_text_exists() -> None:
    options = {option for action in parser()._actions for option in action.option_strings}
    others = {"--to", "--name", "--hub", "--logdir"}  # of `evaluate.clickme`, `train.publish` and TensorBoard
    others |= {"--ipc", "--shm-size"}  # of Docker
    assert set(re.findall(r"(?<![-\w])--[a-z][a-z-]+", TEXT)) <= options | others


def test_the_table_of_models_counts_as_they_do() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) / ([\d,]+) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 8
    for name, *counts in rows:
        for model, count in zip((name, f"{name}_dcls"), counts):
            with torch.device("meta"):  # shapes only
                built = create_model(model)
            assert sum(p.numel() for p in built.parameters()) == int(count.replace(",", "")), model
