"""The layout of a layer's output (CNN, channels last, tokens), inferred from the model; extraction of the map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Where channels, rows and columns of one layer's output are."""

    kind: Literal["NCHW", "NHWC", "tokens"]
    """(B, C, h, w), (B, h, w, C) or (B, prefix + h * w, C)."""
    grid: tuple[int, int]
    """(h, w)."""
    prefix: int = 0
    """Class and register tokens before the patches."""

    @property
    def channel_dim(self) -> int:
        """Dimension of the output that counts channels."""
        return 1 if self.kind == "NCHW" else -1

    def to_map(self, output: Tensor) -> Tensor:
        """The layer's output (or its gradient) as (B, C, h, w), contiguous, prefix tokens removed, see `full`."""
        if self.kind == "NHWC":
            output = output.permute(0, 3, 1, 2)
        elif self.kind == "tokens":
            output = output[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)
        return full(output).contiguous()


def full(values: Tensor) -> Tensor:
    """At least float32: half precision is widened, float64 (a model made double to be exact) is kept."""
    return values if values.dtype == torch.float64 else values.float()


def zero_where_broken(values: Tensor) -> Tensor:
    """(B, ...) with 0 for images that hold NaN or infinity, for which `eigh` would fail for the whole batch."""
    whole = values.isfinite().flatten(1).all(1)
    return torch.where(whole.view(-1, *[1] * (values.ndim - 1)), values, 0)


def find_layout(model: nn.Module, output: Tensor, images: Tensor, layer: nn.Module | None = None) -> Layout:
    """Infer the layout of `output`.

    Four dimensions: by the layer's type where it fixes the order, else by which pair of dimensions has the
    proportions of the image, else by what the model says of its features (`output_fmt`). Three dimensions:
    tokens, whose number gives the prefix and the grid.

    Args:
        model: a timm model, or any.
        output: of `layer`, or of `forward_features` (layer None).
        images: (B, 3, H, W) that led to it.

    Raises:
        UserError: there is no map in this output.
    """
    shape, size = tuple(output.shape), tuple(images.shape[2:])
    if len(shape) in (3, 4) and shape[0] == len(images):
        found = _four(model, shape, size, layer) if len(shape) == 4 else _tokens(model, shape, size)
        if found is not None:
            return found
    raise UserError(
        f"no map in an output of shape {shape} for images {tuple(images.shape)} in {type(model).__name__}; "
        "name a layer whose output is (B, C, h, w), (B, h, w, C) or (B, tokens, C)"
    )


def _four(model: nn.Module, shape: tuple[int, ...], size: tuple[int, ...], layer: nn.Module | None) -> Layout | None:
    first, last = Layout("NCHW", (shape[2], shape[3])), Layout("NHWC", (shape[1], shape[2]))
    if isinstance(layer, nn.Conv2d | nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
        return first
    if isinstance(layer, nn.Linear):
        return last
    # A LayerNorm over the last dimension; timm's LayerNorm2d inherits from it but normalises dimension 1.
    if type(layer) is nn.LayerNorm:
        return last
    if layer is None and hasattr(model, "output_fmt"):
        return last if _declares_channels_last(model) else first
    fits = [option for option in (first, last) if _same_proportions(option.grid, size)]
    if len(fits) == 1:
        return fits[0]
    if len(fits) == 2:
        return last if _declares_channels_last(model) else first
    return None


def _declares_channels_last(model: nn.Module) -> bool:
    return str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")


def _same_proportions(grid: tuple[int, int], size: tuple[int, ...]) -> bool:
    """Whether a map of this grid can belong to an image of this size: one stride, up to rounding, both ways."""
    if min(grid) < 1 or grid[0] > size[0] or grid[1] > size[1]:
        return False
    stride = max(size[0] / grid[0], size[1] / grid[1])
    return all(abs(side / stride - cells) <= 1 for side, cells in zip(size, grid)) and (
        size[0] != size[1] or grid[0] == grid[1]
    )


def _tokens(model: Any, shape: tuple[int, ...], size: tuple[int, ...]) -> Layout | None:
    count = shape[1]
    embedding: Any = getattr(model, "patch_embed", None)
    grids = []
    if getattr(embedding, "grid_size", None) is not None:
        grids.append(tuple(embedding.grid_size))
    if hasattr(embedding, "dynamic_feat_size"):
        grids.append(tuple(embedding.dynamic_feat_size(size)))
    declared = getattr(model, "num_prefix_tokens", 0)
    for grid in grids:
        prefix = count - grid[0] * grid[1]
        if prefix in (0, declared):
            return Layout("tokens", grid, prefix)
    for prefix in dict.fromkeys((declared, 0, 1)):
        rows = round(math.sqrt(max(count - prefix, 0) * size[0] / size[1]))
        if rows and (count - prefix) % rows == 0:
            grid = (rows, (count - prefix) // rows)
            if _same_proportions(grid, size):
                return Layout("tokens", grid, prefix)
    return None
