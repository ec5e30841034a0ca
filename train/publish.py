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

import yaml
from omegaconf import OmegaConf

from common.arguments import ArgumentParser
from common.atomic import write_text
from common.checkpoint import CheckpointConfig, checkpoint_folder, save_checkpoint
from common.entry import run_command
from common.errors import UserError, first_line
from common.text import without_tokens
from common.weights import load_state
from common.zoo import create_model, lookup
from train.augment import model_transform
from train.averaging import process_buffers
from train.configure import as_dict, dcls_spec, refuse_odd_text
from train.monitor import figure_pixels, save_png
from train.pictures import curve_figure
from train.run_folder import RunFolder
from train.settings import Settings
from train.state import mean_of, newest_snapshot, read_snapshot

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
    target = checkpoint_folder(checkpoints, name, None if overwrite else folder.own_weights() or "")
    settings, command = _read_settings(folder)
    content, record = read_snapshot(newest_snapshot(folder.snapshots))
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
    words = [word for word in shlex.split(command) if word.partition("=")[0] not in _LOCAL]
    config = CheckpointConfig(
        model=settings.model,
        num_classes=int(settings.num_classes or lookup(settings.model).num_classes),
        transform=model_transform(settings),
        dcls=spec,
        model_args=settings.model_args,
        classes=json.loads(folder.classes.read_text()) if folder.classes.is_file() else None,
        recipe=recipe,
        metrics=_metrics(folder, record),
        command=shlex.join(words),
        license=settings.license,
    )
    written = save_checkpoint(target, model, config, _pictures(folder))
    write_text(folder.published, json.dumps({"weights_sha256": written.weights_sha256}) + "\n")
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


def _read_settings(folder: RunFolder) -> tuple[Settings, str]:
    """A run's resolved settings and its command."""
    if not folder.config.is_file():
        raise UserError(f"{folder.path} is no run: it has no config.yaml; give runs/NAME/TIME")
    text = folder.config.read_text(encoding="utf-8")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Settings), yaml.safe_load(text))
    except Exception as error:  # PyYAML raises all kinds for values that are none of their type
        raise UserError(f"{folder.config} cannot be read: {first_line(error)}") from error
    refuse_odd_text(merged, str(folder.config))
    settings = OmegaConf.to_object(merged)
    assert isinstance(settings, Settings)
    first = text.partition("\n")[0]
    return settings, first.removeprefix("# ") if first.startswith("# ") else ""


def _metrics(folder: RunFolder, record: dict[str, Any]) -> dict[str, Any]:
    """Figures of a finished run, or the last validation of one that was stopped."""
    if folder.summary.is_file():
        return json.loads(folder.summary.read_text(encoding="utf-8"))["metrics"]
    done = {"updates": record["progress"]["update"], "stopped_early": True}
    for line in reversed(folder.read_metrics()):
        if any(key.startswith("val_") for key in line):
            return {key: value for key, value in line.items() if key.startswith(("val_", "positions/"))} | done
    return done


def _pictures(folder: RunFolder) -> dict[str, bytes]:
    """The curve, and what was drawn of positions and kernels, by file name."""
    lines = folder.read_metrics()
    if lines:
        save_png(folder.pictures / "curve.png", figure_pixels(curve_figure(lines)))
    found = [folder.pictures / f"{stem}.png" for stem in ("curve", "positions", "displacement", "kernels")]
    return {path.name: path.read_bytes() for path in found if path.is_file()}


if __name__ == "__main__":
    sys.exit(run_command(main))
