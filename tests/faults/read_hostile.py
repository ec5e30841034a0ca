"""Reads images as training, validation, evaluation and `explain` do, with little memory and time; run by a test.

The argument is a folder that holds each file as FILE/train/a/FILE and FILE/val/a/FILE, one of them the sound image
`sound.png`. Prints what was said, as JSON: file -> reader -> message, or `decoded`.
"""

import contextlib
import io
import json
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common.models.transform import ModelTransform
from evaluate.cli import explain as photographs
from evaluate.data.folder import FolderData
from evaluate.data.loader import read_batches
from train.configure import load_settings
from train.data.batch import LoadFailure, SampleKey
from train.data.images import open_data

ROOM = 400 * 2**20
"""Bytes beyond those that the imports took."""
SECONDS = 10


def train_and_validate(folder: Path, which: int) -> str:
    """What the trainer's reader, or that of its validation, says of the only image of a data set."""
    source = open_data(load_settings(["recipe=convnext_t", f"data.root={folder}"]))[which]
    batch = source.__getitems__([SampleKey(0, 0, 0)])
    return batch.message if isinstance(batch, LoadFailure) else "decoded"


def evaluate(folder: Path) -> str:
    """What the evaluation's reader says."""
    (read,) = read_batches(FolderData(folder / "train"), ModelTransform(), [[0]], 0)
    return read.bad[0] if read.bad else "decoded"


def explain(files: list[Path], out: Path) -> str:
    """What the command says of several files."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        command = [*map(str, files), "--ckpt", "untrained", "--model", "demo", "--device", "cpu", "--out", str(out)]
        assert photographs.main(command) == (2 if len(files) > 1 else 0)
    return told.getvalue()


def main(root: Path) -> dict[str, dict[str, str]]:
    """Read everything, at first the sound image, which leaves nothing to be loaded later."""
    sound = root / "sound.png" / "train" / "a" / "sound.png"
    explain([sound], root / "out" / "sound")
    found = {"sound.png": read(root / "sound.png")}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    folders = sorted(path for path in root.iterdir() if path.name not in ("sound.png", "out"))
    for folder in folders:
        found[folder.name] = read(folder)
    files = [folder / "train" / "a" / folder.name for folder in folders]
    try:
        lines = explain([sound, *files], root / "out" / "all").splitlines()
    except Exception as error:
        lines = [f"raised {error!r} {' '.join(map(str, files))}"]
    for folder, file in zip(folders, files):
        found[folder.name]["explain"] = next((line for line in lines if str(file) in line), "nothing")
    return found


READERS: dict[str, Callable[[Path], str]] = {
    "train": partial(train_and_validate, which=0),
    "validate": partial(train_and_validate, which=1),
    "evaluate": evaluate,
}


def read(folder: Path) -> dict[str, str]:
    """What each reader says of the image of a folder; the process dies where it takes too long."""
    found = {}
    for name, reader in READERS.items():
        signal.alarm(SECONDS)
        try:
            found[name] = reader(folder)
        except Exception as error:
            found[name] = f"raised {error!r}"
        signal.alarm(0)
    return found


if __name__ == "__main__":
    told = main(Path(sys.argv[1]))
    print(json.dumps(told))
