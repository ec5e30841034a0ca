"""Occlusion (Zeiler and Fergus, ECCV 2014): what the score loses when a patch is hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError
from evaluate.explainers.explainer import Explainer
from evaluate.network.query import Query, Substrate


def occlusion(
    query: Query, window: int | None = None, stride: int | None = None, substrate: Substrate = "mean"
) -> Tensor:
    """The mean, at each pixel, of y - y(patch hidden) over the patches that cover it.

    Patches of `window` pixels begin every `stride` pixels; the last ones end at the border. captum cuts them off there
    instead: the same maps where strides fit, correlation 0.992 where they do not.

    Args:
        query: what is explained.
        window: side of the patch in pixels; one larger than the image is cut to it; None: a seventh of the
            image's shorter side, so 32 for 224.
        stride: step in pixels, at most the window; None: half the window.
        substrate: colour of the patch.

    Returns:
        (B, H, W) at the image's resolution, signed.

    Raises:
        UserError: a stride of 0, or one that leaves pixels uncovered.
    """
    window = max(min(query.images.shape[2:]) // 7, 1) if window is None else window
    stride = max(window // 2, 1) if stride is None else stride
    if not 0 < stride <= window:
        raise UserError(f"occlusion: stride {stride} of window {window}; take 1 <= stride <= window")
    images = query.images
    batch, (height, width) = len(images), images.shape[2:]
    y, below = _sides(height, window, stride, images.device)
    x, beyond = _sides(width, window, stride, images.device)
    patches = torch.cartesian_prod(torch.arange(len(y)), torch.arange(len(x))).to(images.device)

    def perturb(rows: Tensor) -> tuple[Tensor, Tensor]:
        index, (row, column) = rows // len(patches), patches[rows % len(patches)].T
        hidden = _between(height, y[row], below[row])[:, :, None] & _between(width, x[column], beyond[column])[:, None]
        return query.mask(images[index], ~hidden, substrate), index

    scores = query.score_perturbed(batch * len(patches), perturb).view(batch, len(y), len(x))
    drops = query.scores[:, None, None] - scores
    # (patches, pixels covered), down and across: a patch is the product of the two.
    down, across = (_between(height, y, below).to(drops.dtype), _between(width, x, beyond).to(drops.dtype))
    return torch.einsum("byx,yh,xw->bhw", drops, down, across) / torch.outer(down.sum(0), across.sum(0))


def _sides(length: int, window: int, stride: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where patches begin and end along a side of the image."""
    side = min(window, length)
    starts = torch.tensor(sorted({*range(0, length - side, stride), length - side}), device=device)
    return starts, starts + side


def _between(length: int, first: Tensor, end: Tensor) -> Tensor:
    """(n, length), True from each `first` up to, but not including, its `end`."""
    place = torch.arange(length, device=first.device)
    return (place >= first[:, None]) & (place < end[:, None])


ENTRIES = (Explainer("occlusion", occlusion, "perturbation", at_layer=False),)
