"""State dicts: reading weight files without running them, shared tensors once, loading with one full report."""

from __future__ import annotations

import argparse
import errno
import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from common.errors import UserError, first_line

STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Entries under which published files keep their state dict, in the order they are looked for."""


def clean_name(name: str) -> str:
    """A parameter's name without the prefixes that DDP (`module.`) and torch.compile (`_orig_mod.`) add."""
    return name.removeprefix("module.").replace("_orig_mod.", "")


def distinct_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A model's state with every tensor once.

    Returns:
        Tensors by the first name each of them has, and for every further name the first one.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_name: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        name = clean_name(name)
        first = first_name.setdefault(id(tensor), name)
        if first == name:
            tensors[name] = tensor.detach()
        else:
            aliases[name] = first
    return tensors, aliases


def read_weights(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """State dict of a `.safetensors`, `.pth`, `.pt` or `.pth.tar` file, prefixes of wrappers removed.

    Pickled files are read with `weights_only=True`; besides tensors only `argparse.Namespace` is let in,
    which the authors' files hold. Nothing in a file is ever run.

    Args:
        path: the file.
        key: the entry that holds the state dict; by default the first of `STATE_KEYS` that is there.

    Raises:
        UserError: no such file, damaged, holding code, or without a state dict.
    """
    if not path.is_file():
        raise UserError(f"no weight file at {path}")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            _check_archive(path)
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Without torch's advice to read it all the same.
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "no pickle of tensors")
        raise UserError(
            f"{path} was not read: it is damaged or would run code when unpickled ({reason}). Convert it to "
            ".safetensors where it was made, or get it again from its source."
        ) from error
    except Exception as error:  # whatever a damaged file makes of torch's and zipfile's readers
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # to seek a place before the start
            raise
        raise UserError(
            f"{path} is not a readable weight file ({type(error).__name__}: {first_line(error)}). It may be damaged "
            "or cut off: compare its size with the source and get it again."
        ) from error
    return _find_state(content, key, path)


def _check_archive(path: Path) -> None:
    """Compare the members of a `.pth` archive with their CRC-32, which torch does not look at.

    Raises:
        zipfile.BadZipFile: a member differs, or all together claim more bytes than the file has.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # by which torch, too, knows an archive; files of before 1.6 are none
            return
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise zipfile.BadZipFile("its members claim more bytes than the file has")
        damaged = archive.testzip()  # reads in pieces
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} does not have its CRC-32")


def _find_state(content: Any, key: str | None, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        for candidate in (key,) if key else STATE_KEYS:
            if isinstance(content.get(candidate), dict):
                content = content[candidate]
                break
        else:
            if key:
                raise UserError(f"{path} has no entry {key!r}; it has {', '.join(map(str, content))[:300]}")
        tensors = {clean_name(k): v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if odd := [name for name, tensor in tensors.items() if not _is_plain(tensor)]:
            raise UserError(f"{path}: {odd[0]} is no dense tensor of real numbers; only those are read")
        if tensors:
            return tensors
    raise UserError(f"{path} holds no state dict (found {type(content).__name__}, looked for {', '.join(STATE_KEYS)})")


def _is_plain(tensor: Tensor) -> bool:
    on_cpu = tensor.device.type == "cpu" and tensor.layout == torch.strided
    return on_cpu and not (tensor.is_quantized or tensor.is_nested or tensor.is_complex())


def stored_shapes(path: Path) -> dict[str, torch.Size]:
    """Shapes in a `.safetensors` file, by name, prefixes of wrappers removed; only its head is read.

    Raises:
        UserError: it is no such file.
    """
    try:
        with safe_open(path, "pt") as file:
            return {clean_name(name): torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable weight file ({first_line(error)}); get it again") from error


_LISTED = 20


def load_state(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Copy a state dict into a model; names of shared tensors may stand once or under every user.

    Args:
        model: receives the values in place; shared tensors stay shared.
        state: tensors by name.
        where: the source, for the message.

    Raises:
        UserError: names are missing, unexpected or misshapen, or copies of a shared tensor differ; up to
            20 of them are listed in one message, and the model is left unchanged.
    """
    own = _own_tensors(model)
    given, problems = _compare(own, {name: tensor.shape for name, tensor in state.items()})
    problems += [
        f"different values for one shared tensor: {first} and {name}"
        for name, tensor in state.items()
        if name in own and (first := given[id(own[name])]) != name and tensor.shape == state[first].shape
        if not torch.equal(state[first], tensor)
    ]
    _refuse(problems, model, where)
    with torch.no_grad():
        for target in own.values():
            target.copy_(state[given[id(target)]])


def check_shapes(model: nn.Module, shapes: Mapping[str, torch.Size], where: str) -> None:
    """Refuse a weight file by names and shapes alone; the model may be on the meta device.

    Args:
        model: that is to receive it.
        shapes: in the file, by name.
        where: the file, for the message.

    Raises:
        UserError: names are missing, unexpected or misshapen, as in `load_state`.
    """
    _refuse(_compare(_own_tensors(model), shapes)[1], model, where)


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {clean_name(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}


def _compare(own: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> tuple[dict[int, str], list[str]]:
    """For every distinct tensor of a model the name that brings its value, and what does not fit."""
    given: dict[int, str] = {}
    problems = []
    for name, shape in shapes.items():
        target = own.get(name)
        if target is None:
            problems.append(f"unexpected {name} {tuple(shape)}")
            continue
        given.setdefault(id(target), name)
        if target.shape != shape:
            problems.append(f"misshapen {name}: {tuple(shape)} in the file, {tuple(target.shape)} in the model")
    problems += [f"missing {name} {tuple(t.shape)}" for name, t in own.items() if id(t) not in given]
    return given, problems


def _refuse(problems: list[str], model: nn.Module, where: str) -> None:
    if problems:
        raise UserError(
            f"{where} does not fit {type(model).__name__}, {len(problems)} names differ:\n  "
            + "\n  ".join(problems[:_LISTED])
            + (f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else "")
        )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
