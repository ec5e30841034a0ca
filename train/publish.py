"""From a run to a checkpoint folder, and to the hub: `python -m train.publish RUN --name NAME [--hub ORG/NAME]`."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from common.entry import quit_on_interrupt

    quit_on_interrupt()

from common.arguments import ArgumentParser
from common.checkpoint import checkpoint_folder, save_checkpoint
from common.checkpoint_config import CheckpointConfig
from common.entry import run_command
from common.errors import UserError, first_line
from common.leftovers import clear_leftovers
from common.lock import locked
from common.models.zoo import create_model, lookup
from common.text import without_tokens
from common.weights import load_state
from train.averaging import process_buffers
from train.configure import as_dict, dcls_spec
from train.data.augment import model_transform
from train.runs.run_folder import PICTURES, RunFolder
from train.runs.snapshots import Record, list_snapshots, newest_snapshot, read_snapshot, settings_of
from train.runs.state import mean_of
from train.watching.pictures import curve_figure, figure_pixels, save_png

PATIENCE = 60.0
"""Seconds to wait for somebody who publishes under the same name just now."""
_LOCAL = ("run_dir", "runs_dir", "checkpoints_dir", "resume", "overwrite", "init_from", "data.root", "data.val_root")


def publish_run(run: Path, name: str, checkpoints: Path, overwrite: bool = False) -> Path:
    """Write the checkpoint folder of a run's newest snapshot.

    BatchNorm statistics are the mean over the processes. Settings that only name places on one machine are left
    out of the published recipe and command. What this run published before under the name is replaced, another
    checkpoint only with `overwrite`.

    Returns:
        The folder, `checkpoints/name`.

    Raises:
        UserError: no such run, nothing whole in it, or something else stands where it would go.
    """
    folder = RunFolder(run)
    checkpoint_folder(checkpoints, name, None if overwrite else folder.own_weights())  # before anything is read
    if not list_snapshots(folder.snapshots):
        raise UserError(f"{run} is no run with a snapshot; give runs/NAME/TIME")
    content, record = read_snapshot(newest_snapshot(folder.snapshots))
    settings = settings_of(record)
    spec = dcls_spec(settings)
    fresh = spec and dataclasses.replace(spec, init="fresh")  # all values come from the snapshot
    model = create_model(settings.model, settings.num_classes, dcls=fresh, **settings.model_args)
    averaged = settings.publish_weights == "ema"
    load_state(model, content["ema"]["model"] if averaged else content["model"], str(run))
    for i, buffer in enumerate(process_buffers(model)):
        buffer.copy_(mean_of(content["processes"], "ema_buffers" if averaged else "buffers", i))
    recipe = as_dict(settings)
    for key in _LOCAL:
        group, _, last = key.rpartition(".")
        (recipe[group] if group else recipe).pop(last)
    outputs = int(settings.num_classes or lookup(settings.model).num_classes)
    words = [word for word in _split(record["command"]) if word.partition("=")[0] not in _LOCAL]
    config = CheckpointConfig(
        model=settings.model,
        num_classes=outputs,
        transform=model_transform(settings),
        dcls=spec,
        model_args=settings.model_args,
        classes=_class_names(record["classes"], outputs),
        recipe=recipe,
        metrics=_metrics(folder, record),
        command=shlex.join(words),
        license=settings.license,
    )
    pictures = _pictures(folder, record)
    checkpoints.mkdir(parents=True, exist_ok=True)
    with locked(checkpoints / f".{name}.lock", f"the name {name} in {checkpoints}", "take another name", PATIENCE):
        clear_leftovers(checkpoints, name, alone=True)
        target = checkpoint_folder(checkpoints, name, None if overwrite else folder.own_weights())
        save_checkpoint(target, model, config, pictures, folder.will_publish)
    return target


def upload(checkpoint: Path, repository: str) -> str:
    """Upload a checkpoint folder to the Hugging Face hub; returns its address.

    The token comes from the environment (HF_TOKEN, or what `hf auth login` keeps) and is never written anywhere.

    Raises:
        UserError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=checkpoint)
    except Exception as error:  # of the hub's own kinds, and those of the library that it connects with
        reason = first_line(without_tokens(str(error)))
        raise UserError(
            f"{repository} was not uploaded ({type(error).__name__}: {reason}); {checkpoint} is written. If the hub "
            "was reached, log in with `hf auth login` or set HF_TOKEN to a token that may write there"
        ) from None
    return f"https://huggingface.co/{repository}"


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m train.publish`."""
    parser = ArgumentParser(prog="python -m train.publish", description="Publish a run's newest snapshot.")
    parser.add_argument("run", type=Path, help="runs/NAME/TIME")
    parser.add_argument("--name", required=True, help="name of the checkpoint")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="its folder (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint of this name from another run")
    parser.add_argument("--hub", metavar="ORG/NAME", help="also upload it to this repository of the hub")
    options = parser.parse_args(argv)
    folder = publish_run(options.run, options.name, options.checkpoints, options.overwrite)
    print(folder)
    if options.hub:
        print(upload(folder, options.hub))
    return 0


def _split(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # an open quotation mark, which no shell let through
        return []


def _class_names(names: list[str] | None, outputs: int) -> list[str] | None:
    """A line for each output, or None where the data has no names or not as many."""
    if names is None or len(names) != outputs:
        return None
    return [" ".join("".join(c if c.isprintable() else " " for c in name).split()) for name in names]


def _metrics(folder: RunFolder, record: Record) -> dict[str, Any]:
    """Figures of a finished run, or the last validation before the snapshot of one that was stopped."""
    update = record["progress"]["update"]
    if folder.summary.is_file():
        figures = _summary(folder)
        if figures["updates"] == update:  # else of a snapshot that is damaged now
            return figures
    done = {"updates": update, "stopped_early": update < record["progress"]["total"]}
    for line in reversed(folder.read_metrics(update)):
        if any(key.startswith("val_") for key in line):
            return {key: value for key, value in line.items() if key.startswith(("val_", "positions/"))} | done
    return done


def _summary(folder: RunFolder) -> dict[str, Any]:
    try:
        figures = json.loads(folder.summary.read_text(encoding="utf-8"))["metrics"]
        if type(figures["updates"]) is int and all(isinstance(v, int | float | str) for v in figures.values()):
            return figures
        reason = "figures of another kind"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
    raise UserError(
        f"{folder.summary} is damaged ({reason}); the command of the run with resume={folder.path} writes it anew"
    )


def _pictures(folder: RunFolder, record: Record) -> dict[str, bytes]:
    """The curve, and what was drawn of positions and kernels, by file name."""
    lines = folder.read_metrics(record["progress"]["update"])
    if lines:
        save_png(folder.pictures / "curve.png", figure_pixels(curve_figure(lines)))
    found = [folder.pictures / f"{stem}.png" for stem in PICTURES]
    return {path.name: path.read_bytes() for path in found if path.is_file()}


if __name__ == "__main__":
    sys.exit(run_command(main))
