"""A checkpoint is a stranger's: whatever its config.json asks for, the answer is one line, soon and without memory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.checkpoint import load_checkpoint
from common.errors import UserError
from common.models.zoo import create_model
from tests.common.checkpoint_edits import ABSENT, put

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """A copy of a committed checkpoint."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "net").mkdir(exist_ok=True)
        shutil.copyfile(ROOT / "checkpoints" / "demo_dcls" / name, tmp_path / "net" / name)
    return tmp_path / "net"


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint(folder)
    return str(caught.value)


DEEP = json.loads("[" * 500 + "]" * 500)
WRONG = {
    "model": [None, 7, "", "nothing", ["demo"], "timm:../demo", "timm:hf-hub:a/b", "x" * 5000, "demo\n"],
    "num_classes": [0, -1, 12.0, "12", True, None, 10**9, 10**30, ABSENT],
    "transform": [None, [], "bicubic", 1, ABSENT],
    "transform|resize": [0, -64, "64", 64.5, [64], True, None, 40000, 10**40, ABSENT],
    "transform|crop": [0, "64", None, 1.5, 40000, ABSENT],
    "transform|interpolation": ["", "cubic", 3, None, ["bicubic"], ABSENT],
    "transform|mean": [[0.5] * 4, [0.5] * 2, 0.5, "abc", [None] * 3, ["0.5"] * 3, [1e300] * 3, [True] * 3, ABSENT],
    "transform|std": [[0, 0, 0], [-1, -1, -1], [1e-30] * 3, [[1]] * 3, {}, ABSENT],
    "transform|squash": ["no", 1, None],
    "transform|rezise": [64],
    "dcls": ["v1", 1, [1]],
    "dcls|interpolation": ["", "v2", None, 1, ABSENT],
    "dcls|dilated_kernel_size": [0, -3, 11.0, "11", 10**5, 10**20, None, ABSENT],
    "dcls|kernel_count": [0, 24.0, "24", 10**7, None, ABSENT],
    "dcls|rule": ["", "nothing", [], [1], None, {}, ["depthwise", None]],
    "dcls|share_positions": ["yes", 0],
    "dcls|weight_init": ["zeros", None],
    "dcls|init": ["", []],
    "dcls|extra": [1],
    "model_args": [[], None, "depths=1", {"depths": DEEP}],
    "classes": ["abcdefghijkl", ["a"] * 11, [], [1] * 12, [None] * 12, ["a"] * 13, ["a\nb"] * 12, ["\ud800"] * 12],
    "recipe": [None, [], "demo"],
    "metrics": [[], None, {"top1": [1]}, {"top1": {"a": 1}}],
    "command": [None, 7],
    "license": [None, ["MIT"]],
    "shared": [[], {"a": 1}],
    "versions": [None, {"torch": 2}],
    "weights_sha256": [None, "", 7, "0" * 63, "Z" * 64, ABSENT],
    "format": [2, "1", 1.0, True, None, ABSENT],
    "wieghts_sha256": ["0" * 64],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values], ids=repr
)
def test_an_entry_that_is_not_what_it_must_be_is_named_in_one_line(folder, key, value):
    put(folder, key, value)
    message = refusal(folder)
    assert "\n" not in message and len(message) < 1500
    assert str(folder) in message
    if value not in ("nothing", "timm:../demo", "timm:hf-hub:a/b", ""):  # of names that are looked up
        assert key.replace("|", ".") in message


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ['"resize": 64', '"top1": 97.8', "0.25"])
def test_a_number_that_is_not_finite_is_refused(folder, text, place):
    put(folder, "config_sha256", ABSENT, signed=False)
    path = folder / "config.json"
    before = path.read_text()
    number = place.rpartition(" ")[2]
    path.write_text(before.replace(place, place.replace(number, text), 1))
    assert path.read_text() != before and "config.json" in refusal(folder)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"[" * 200_000, b"null", b'"text"', b"7", b'{"format": ' + b"9" * 5000 + b"}", b"{}"]
)
def test_a_file_that_is_no_mapping_of_this_format_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    assert "\n" not in (message := refusal(folder)) and "config.json" in message


def test_an_unknown_key_gets_the_nearest_right_one(folder):
    put(folder, "num_class", 12)
    assert "unknown key 'num_class'; did you mean num_classes" in refusal(folder)


def test_one_changed_digit_of_any_entry_is_noticed(folder):
    path = folder / "config.json"
    text = path.read_text()
    places = [place for place, character in enumerate(text) if character.isdigit()]
    for place in places[:: max(1, len(places) // 150)]:
        digit = "1" if text[place] != "1" else "2"
        path.write_text(text[:place] + digit + text[place + 1 :])
        assert "config.json" in refusal(folder)


class Gadget:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


FORBIDDEN = {
    "checkpoint_path": "README.md",
    "pretrained": True,
    "pretrained_cfg": {"file": "README.md"},
    "pretrained_cfg_overlay": {"file": "README.md"},
    "cache_dir": "cache",
    "features_only": True,
    "scriptable": True,
    "act_layer": "torch.nn.ReLU",
    "norm_layer": "batchnorm2d",
    "block_fn": "x",
    "num_classes": 12,
    "in_chans": 3,
    "name": "demo",
    "dcls": None,
}


@pytest.mark.parametrize("argument", FORBIDDEN)
def test_arguments_that_name_a_file_a_weight_or_code_are_refused(folder, argument):
    trap = folder / "trap"
    torch.save({"state_dict": {}, "x": Gadget(trap)}, folder / "README.md")
    value = FORBIDDEN[argument]
    put(folder, "model", "timm:resnet10t")
    put(folder, "dcls", None)
    put(folder, "model_args", {argument: str(folder / value) if value == "README.md" else value})
    assert f"unknown key 'model_args.{argument}'" in refusal(folder)
    assert not trap.exists()


@pytest.mark.parametrize(
    "argument", [name for name in FORBIDDEN if name not in ("pretrained", "num_classes", "name", "dcls")]
)
def test_recipes_and_command_lines_cannot_give_them_either(argument):
    with pytest.raises(UserError, match=rf"timm:resnet10t: unknown key 'model_args\.{argument}'"):
        create_model("timm:resnet10t", **{argument: FORBIDDEN[argument]})


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("demo", {"widths": [64, 64]}),
        ("demo", {"depths": []}),
        ("demo", {"img_size": 64}),
        ("convnext_t", {"depths": [3]}),
        ("convnext_t", {"drop_path_rate": 1.5}),
        ("timm:vit_tiny_patch16_224", {"num_heads": 5}),
        ("timm:resnet10t", {"pad_type": "none"}),
        ("timm:resnet10t", {"layers": [1, 1, 1, "1"]}),
    ],
)
def test_arguments_that_make_no_model_are_told_in_one_line(folder, model, arguments):
    put(folder, "model", model)
    put(folder, "dcls", None)
    put(folder, "model_args", arguments)
    assert "\n" not in (message := refusal(folder)) and next(iter(arguments)) in message


ABSURD = [
    {"num_classes": 1_000_000, "classes": None},
    {"dcls|dilated_kernel_size": 1023},
    {"dcls|kernel_count": 1_000_000},
    {"model": "timm:eva02_enormous_patch14_clip_224", "dcls": None},
    {"model": "timm:regnety_2560", "dcls": None},
    {"model_args": {"depths": [256] * 64, "widths": [8, 16] * 32}},
    {"model_args": {"widths": [16384, 16383], "depths": [256, 256]}},
    {"model": "timm:levit_384", "dcls": None, "model_args": {"img_size": 2048}},
    {
        "model": "timm:swin_large_patch4_window12_384",
        "dcls": None,
        "model_args": {"img_size": 2048, "window_size": 256},
    },
    {"model": "timm:vit_tiny_patch16_224", "dcls": None, "model_args": {"depth": 256, "embed_dim": 15360}},
    {"model": "convnext_t", "dcls": None, "model_args": {"kernel_sizes": 255, "dims": [16384] * 4}},
]
LIMITED = """
import json, resource, sys, time
from pathlib import Path
from common.checkpoint import load_checkpoint
from common.errors import UserError
load_checkpoint(Path(sys.argv[1]))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29,) * 2)
for folder in map(Path, sys.argv[2:]):
    began = time.process_time()
    try:
        load_checkpoint(folder)
        said = "loaded"
    except UserError as error:
        said = str(error)
    print(json.dumps([said, time.process_time() - began]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and measures memory as Linux does")
def test_absurd_sizes_are_refused_soon_and_without_memory(folder, tmp_path):
    hostile = []
    for number, changes in enumerate(ABSURD):
        hostile.append(shutil.copytree(folder, tmp_path / f"{number}"))
        for key, value in changes.items():
            put(hostile[-1], key, value)
    command = [sys.executable, "-c", LIMITED, *map(str, [folder, *hostile])]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(ABSURD), done.stderr[-2000:]
    for changes, (said, seconds) in zip(ABSURD, answers):
        assert str(tmp_path) in said and seconds < 10, (changes, said, seconds)
