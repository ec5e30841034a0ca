"""The checkpoint folder that `train` publishes and `evaluate` loads.

`model.safetensors` (shared positions once), `config.json` (what is needed to build the model and to know how
it was made) and `README.md` (a model card). See `checkpoints/README.md` for the format.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Collection
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from common.atomic import atomic_folder
from common.checkpoint_config import CheckpointConfig, config_text, parse_config
from common.dcls import DclsConv2d
from common.errors import UserError
from common.leftovers import clear_leftovers
from common.model_card import model_card
from common.models.zoo import create_model
from common.outline import outline
from common.versions import library_versions
from common.weights import check_shapes, distinct_state, load_state, read_weights, sha256, stored_shapes

_FILES = ("config.json", "model.safetensors")


_SPARE_BYTES = 2**30  # of a model beyond 16 times its weight file: kernels before surgery, buffers that are not saved


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
        config: everything but `shared`, `versions`, `weights_sha256` and `config_sha256`, which are filled in here.
        pictures: PNG files for the card, content by file name.
        announce: is told the weights' SHA-256 before they take their place.

    Returns:
        The configuration as written.

    Raises:
        UserError: the configuration is one that `read_config` would refuse.
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
        text, digest = config_text(config, folder / "config.json")
        config = dataclasses.replace(config, config_sha256=digest)
        (temporary / "config.json").write_text(text)
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
    return parse_config(folder / "config.json")


def load_checkpoint(folder: Path | str) -> tuple[nn.Module, CheckpointConfig]:
    """Build a checkpoint's model, in evaluation mode on the CPU, its positions shared again.

    Nothing of the model's size is allocated before names and shapes were compared with the weight file's head.

    Raises:
        UserError: a file is absent, a byte has changed, the configuration is not one this version reads, or names
            and shapes do not fit.
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
    build = functools.partial(create_model, config.model, config.num_classes, dcls=spec, **config.model_args)
    most = 16 * path.stat().st_size + _SPARE_BYTES
    described = outline(build, most, str(folder / "config.json"))
    check_shapes(described, stored_shapes(path), str(path))
    if (dense := _dense_bytes(described)) > most:
        raise UserError(
            f"{folder / 'config.json'}: with dcls.dilated_kernel_size {spec and spec.dilated_kernel_size} the dense "
            f"kernels would take {dense / 2**30:.1f} GiB. Get the checkpoint again from where it was published"
        )
    model = build()
    load_state(model, read_weights(path), str(path))
    return model.eval(), config


def _dense_bytes(model: nn.Module) -> int:
    """Memory of all kernels of DCLS layers once they are folded, in float32."""
    layers = (layer for layer in model.modules() if isinstance(layer, DclsConv2d))
    return sum(
        4 * layer.out_channels * layer.in_channels // layer.groups * math.prod(layer.dilated_kernel_size)
        for layer in layers
    )
