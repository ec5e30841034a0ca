"""The checkpoint folder that `train` publishes and `evaluate` loads.

`model.safetensors` (shared positions once), `config.json` (what is needed to build the model and to know how
it was made) and `README.md` (a model card). See `checkpoints/README.md` for the format.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import platform
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from common.atomic import atomic_folder
from common.dcls_spec import DclsSpec
from common.errors import UserError
from common.leftovers import clear_leftovers
from common.model_card import model_card
from common.transform import ModelTransform
from common.weights import distinct_state, load_state, read_weights, sha256
from common.zoo import create_model

FORMAT = 1
_FILES = ("config.json", "model.safetensors")
_LIBRARIES = ("dcls-align", "torch", "torchvision", "timm", "dcls", "accelerate", "datasets", "safetensors")


@dataclass
class CheckpointConfig:
    """What `config.json` holds."""

    model: str
    """A name of the zoo, or `timm:ARCHITECTURE`."""
    num_classes: int
    """Number of outputs."""
    transform: ModelTransform
    """Preprocessing the model was trained for."""
    dcls: DclsSpec | None = None
    """Surgery, or None for a plain model."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the architecture."""
    classes: list[str] | None = None
    """Name of every class, in order of index, where known."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration of the run."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Figures measured at the end of training, by name."""
    command: str = ""
    """The command that made it."""
    license: str = "MIT"
    """Licence of the weights."""
    shared: dict[str, str] = field(default_factory=dict)
    """For every further name of a shared tensor, the name under which it is stored."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Python, this code and the libraries."""
    weights_sha256: str = ""
    """SHA-256 of `model.safetensors`."""
    format: int = FORMAT
    """Version of this layout."""


def library_versions() -> dict[str, str]:
    """Versions of Python, of this code and of the libraries a result depends on; `unknown` if not installed."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions


class NameTakenError(UserError):
    """Under the name of a checkpoint that is to be written lies another one."""


def checkpoint_folder(library: Path, name: str, replaces: Collection[str] | None = ()) -> Path:
    """The folder `library/name` of a checkpoint that is to be written.

    Args:
        library: folder of checkpoints.
        name: of this one.
        replaces: SHA-256 of the weights that may be replaced, those of the same run; None: any checkpoint may be.

    Raises:
        NameTakenError: another checkpoint or something else stands there.
        UserError: the name cannot be that of a folder.
    """
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"{name!r} is no name for a checkpoint; take letters, digits, '_', '-', '.' and '+'")
    folder = library / name
    if not folder.exists():
        return folder
    if not all((folder / file).is_file() for file in _FILES):
        raise NameTakenError(f"{folder} exists and is no checkpoint; it is left alone. Take another name or folder")
    if replaces is not None and sha256(folder / "model.safetensors") not in replaces:
        raise NameTakenError(
            f"{folder} holds the checkpoint of another run. Take another name (name=NAME) or folder "
            "(checkpoints_dir=DIR), or replace it (overwrite=true; --overwrite where it is published by hand)"
        )
    return folder


def free_folder(library: Path, name: str) -> Path:
    """The first of `library/name-2`, `library/name-3`, ... that does not exist."""
    return next(folder for n in itertools.count(2) if not (folder := library / f"{name}-{n}").exists())


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    config: CheckpointConfig,
    pictures: dict[str, bytes] | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> CheckpointConfig:
    """Write a checkpoint folder, whole or not at all, for good; one that stood there is replaced.

    Args:
        folder: where to.
        model: an unwrapped model of the zoo, not folded.
        config: everything but `shared`, `versions` and `weights_sha256`, which are filled in here.
        pictures: PNG files for the card, content by file name.
        announce: is told the weights' SHA-256 before they take their place.

    Returns:
        The configuration as written.
    """
    tensors, aliases = distinct_state(model)
    with atomic_folder(folder, lasting=True) as temporary:
        weights = temporary / "model.safetensors"
        weights.touch()  # safetensors would make it readable for its owner only
        mode = weights.stat().st_mode
        save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, weights, metadata={"format": "pt"})
        weights.chmod(mode)
        config = dataclasses.replace(
            config, shared=aliases, versions=library_versions(), weights_sha256=sha256(weights)
        )
        (temporary / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        (temporary / "README.md").write_text(model_card(folder.name, dataclasses.asdict(config), list(pictures or {})))
        for name, content in (pictures or {}).items():
            (temporary / name).write_bytes(content)
        announce(config.weights_sha256)
    return config


def read_config(folder: Path) -> CheckpointConfig:
    """Read `config.json` of a checkpoint folder.

    Raises:
        UserError: not a checkpoint folder, a file is absent, or the configuration is not one this version reads.
    """
    if not folder.exists():
        clear_leftovers(folder.parent)  # a killed writer may have moved it away
    if not folder.is_dir():
        raise UserError(f"no checkpoint folder at {folder}")
    absent = [name for name in _FILES if not (folder / name).is_file()]
    if absent:
        raise UserError(
            f"{folder} is not a whole checkpoint: {', '.join(absent)} is missing. A checkpoint holds "
            f"{' and '.join(_FILES)}; publish it again or copy the folder again."
        )
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("format") != FORMAT:
            raise UserError(f"{path}: format {raw.get('format')!r}; this version reads format {FORMAT}")
        raw["transform"] = ModelTransform(**{k: _tuple(v) for k, v in raw["transform"].items()})
        raw["dcls"] = DclsSpec(**raw["dcls"]) if raw.get("dcls") else None
        return CheckpointConfig(**raw)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); publish the checkpoint again") from error


def load_checkpoint(folder: Path | str) -> tuple[nn.Module, CheckpointConfig]:
    """Build a checkpoint's model, in evaluation mode on the CPU, its positions shared again.

    Raises:
        UserError: a file is absent, a byte has changed, or names and shapes do not fit.
    """
    folder = Path(folder)
    config = read_config(folder)
    path = folder / "model.safetensors"
    found = sha256(path)
    if found != config.weights_sha256:
        raise UserError(
            f"{path} has changed since it was published: its SHA-256 is {found[:16]}..., config.json says "
            f"{config.weights_sha256[:16]}... Get the folder again from where it was published."
        )
    # Fresh, as all values come from the file.
    spec = config.dcls and dataclasses.replace(config.dcls, init="fresh")
    model = create_model(config.model, config.num_classes, dcls=spec, **config.model_args)
    load_state(model, read_weights(path), str(path))
    return model.eval(), config


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
