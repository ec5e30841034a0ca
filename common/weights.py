"""State dicts: reading weight files without running them, shared tensors once, loading with one full report."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from common.errors import UserError

STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Entries under which published files keep their state dict, in the order they are looked for."""

_OF_DAMAGE = (
    ValueError, LookupError, AssertionError, TypeError, AttributeError, OverflowError, MemoryError,
)  # fmt: skip
"""What torch's reader of old files runs into where a byte of one is wrong."""


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
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Without torch's advice to read it all the same.
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "no pickle of tensors")
        raise UserError(
            f"{path} was not read: it is damaged or would run code when unpickled ({reason}). Convert it to "
            ".safetensors where it was made, or get it again from its source."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile, *_OF_DAMAGE) as error:
        raise UserError(
            f"{path} is not a readable weight file ({type(error).__name__}: {str(error)[:200]}). It may be cut "
            "off: compare its size with the source and get it again."
        ) from error
    return _find_state(content, key, path)


def _find_state(content: Any, key: str | None, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        for candidate in (key,) if key else STATE_KEYS:
            if isinstance(content.get(candidate), dict):
                content = content[candidate]
                break
        else:
            if key:
                raise UserError(f"{path} has no entry {key!r}; it has {', '.join(map(str, content))[:300]}")
        tensors = {clean_name(str(k)): v for k, v in content.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
    raise UserError(f"{path} holds no state dict (found {type(content).__name__}, looked for {', '.join(STATE_KEYS)})")


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
    own = {clean_name(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    given: dict[int, str] = {}  # distinct tensor of the model -> name that brings its value
    problems = []
    for name, tensor in state.items():
        target = own.get(name)
        if target is None:
            problems.append(f"unexpected {name} {tuple(tensor.shape)}")
        elif target.shape != tensor.shape:
            problems.append(f"misshapen {name}: {tuple(tensor.shape)} in the file, {tuple(target.shape)} in the model")
            given.setdefault(id(target), name)
        else:
            first = given.setdefault(id(target), name)
            if first != name and not torch.equal(state[first], tensor):
                problems.append(f"different values for one shared tensor: {first} and {name}")
    problems += [f"missing {name} {tuple(t.shape)}" for name, t in own.items() if id(t) not in given]
    if problems:
        raise UserError(
            f"{where} does not fit {type(model).__name__}, {len(problems)} names differ:\n  "
            + "\n  ".join(problems[:_LISTED])
            + (f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else "")
        )
    with torch.no_grad():
        for target in own.values():
            target.copy_(state[given[id(target)]])


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
