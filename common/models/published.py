"""The authors' weight files and other original ones: downloaded, read without running code, renamed to timm's names.

Files come under the parameter names of the original repositories (facebookresearch/ConvNeXt, sail-sg/metaformer,
apple/ml-fastvit) or under timm's; both are recognised. DCLS layers keep the names of the dcls package in all of
them: `weight`, `P`, `SIG`, `bias`, P repeated under the name of every layer that shares it.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import timm
import torch
from torch import Tensor, nn

from common.download import cache_folder, download
from common.errors import UserError
from common.models.zoo import ZOO, ZooModel
from common.weights import read_weights

RENAMED_FAMILIES = ("convnext", "metaformer", "fastvit")
"""Modules of timm whose parameters bear other names than in the original repositories."""


def fetch_published(entry: ZooModel) -> Path:
    """The authors' file of a model, downloaded into the cache folder at the first call.

    Raises:
        UserError: nothing is published for this model, or the download fails.
    """
    if entry.published is None:
        known = ", ".join(name for name, other in ZOO.items() if other.published)
        raise UserError(f"zenodo:{entry.name}: the authors have published no such file; there are {known}")
    file = entry.published
    target = cache_folder() / "weights" / file.url.rpartition("/")[2]
    return download(file.url, target, file.size, file.sha256)


def published_state(path: Path, entry: ZooModel, model: nn.Module) -> dict[str, Tensor]:
    """State dict of a published or original weight file under the names of our models.

    Copies of shared positions stay under all their names; `load_state` compares them and ties them.

    Args:
        path: `.pth`, `.pth.tar` or `.safetensors`.
        entry: what the file is said to hold.
        model: the model that is to receive it, for the shapes of 1x1 convolutions stored as matrices.

    Raises:
        UserError: the file cannot be read, or obviously holds another kind of model.
    """
    state = read_published(path, entry.published.key if entry.published else None)
    _check_kind(state, entry, path)
    return our_names(state, entry, model)


def our_names(state: dict[str, Tensor], entry: ZooModel, model: nn.Module) -> dict[str, Tensor]:
    """A file's state dict under our names, in our shapes and axes."""
    # dcls 0.0.1 also stored the index tensors of its kernel construction: DCK.I, DCK.J, DCK.lim.
    state = {name: tensor for name, tensor in state.items() if ".DCK." not in f".{name}"}
    state = _timm_names(state, entry.architecture)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if tensor.ndim == 2 and shapes.get(name) == (*tensor.shape, 1, 1):
            state[name] = tensor[:, :, None, None]
    if entry.published and entry.published.swapped_axes:
        state = {name: t.flip(0) if name.endswith((".P", ".SIG")) else t for name, t in state.items()}
    return state


def read_published(path: Path, key: str | None) -> dict[str, Tensor]:
    """State dict of a file of the authors."""
    # `args` of runs started through submitit hold an output folder; a pure path touches no file system.
    with torch.serialization.safe_globals(
        [(PurePosixPath, "pathlib.PosixPath"), (PurePosixPath, "pathlib._local.PosixPath")]
    ):
        try:
            return read_weights(path, key)
        except UserError:
            if key is None:
                raise
            return read_weights(path)  # a file of the same model from elsewhere


def _kind(kernel_count: int | None, has_sigma: bool) -> str:
    if kernel_count is None:
        return "a plain model"
    return f"a DCLS model of {kernel_count} elements a kernel {'with' if has_sigma else 'without'} widths (SIG)"


def _kind_of(entry: ZooModel) -> str:
    if entry.dcls is None:
        return _kind(None, False)
    return _kind(entry.dcls.kernel_count, entry.dcls.interpolation in ("max", "gauss"))


def _check_kind(state: dict[str, Tensor], entry: ZooModel, path: Path) -> None:
    """Catch the frequent mistakes, which would otherwise end in a list of hundreds of names."""
    if any(".reparam_conv." in name or ".lkb_reparam." in name for name in state):
        raise UserError(f"{path} holds a FastViT fused for inference; take the file without `reparam` in its name")
    positions = next((tensor for name, tensor in state.items() if name.endswith(".P")), None)
    has_sigma = any(name.endswith(".SIG") for name in state)
    found = _kind(None if positions is None else positions.shape[-1], has_sigma)
    if found != _kind_of(entry):
        fitting = [
            n for n, other in ZOO.items() if other.architecture == entry.architecture and _kind_of(other) == found
        ]
        advice = f"; give --model {' or '.join(fitting)}" if fitting else ""
        raise UserError(f"{path} holds {found}, and {entry.name} is {_kind_of(entry)}{advice}")


def _timm_names(state: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """Rename parameters of an original repository as timm does; names that are timm's already stay.

    timm's filters are asked for names only. Given the tensors they would also reshape whatever has the right
    number of elements, and stop at the first name the model does not have.
    """
    family = timm.model_entrypoint(architecture).__module__ if timm.is_model(architecture) else ""
    if family.rpartition(".")[2] not in RENAMED_FAMILIES:
        return state
    names = list(state)
    tokens = {name: torch.tensor([number]) for number, name in enumerate(names, 1)}
    any_name: defaultdict[str, SimpleNamespace] = defaultdict(lambda: SimpleNamespace(shape=None, numel=lambda: -1))
    asked = SimpleNamespace(state_dict=lambda: any_name, head=None)
    renamed = importlib.import_module(family).checkpoint_filter_fn(tokens, asked)
    return {new: state[names[int(token) - 1]] for new, token in renamed.items() if token.numel() == 1}
