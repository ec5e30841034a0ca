"""Occlusion (Zeiler and Fergus, ECCV 2014): what the score loses when a patch is hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError
from evaluate.explainers.query import Query, Substrate


def occlusion(
    query: Query, window: int | None = None, stride: int | None = None, substrate: Substrate = "mean"
) -> Tensor:
    """At each pixel the mean of y - y(patch hidden) over the patches that cover it.

    Patches of `window` pixels begin every `stride` pixels; the last ones end at the border.

    Args:
        query: what is explained.
        window: side of the patch in pixels; one larger than the image is cut to it; None: a seventh of the
            image's shorter side, 32 of 224.
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
    batch, size = len(images), images.shape[2:]
    sides = [min(window, length) for length in size]
    starts = [sorted({*range(0, length - side, stride), length - side}) for length, side in zip(size, sides)]
    patches = torch.zeros(len(starts[0]) * len(starts[1]), *size, dtype=query.logits.dtype, device=images.device)
    for patch, (y, x) in zip(patches, ((y, x) for y in starts[0] for x in starts[1])):
        patch[y : y + sides[0], x : x + sides[1]] = 1

    def perturb(rows: Tensor) -> tuple[Tensor, Tensor]:
        index = rows // len(patches)
        return query.mask(images[index], 1 - patches[rows % len(patches)], substrate), index

    scores = query.score_perturbed(batch * len(patches), perturb).view(batch, len(patches))
    drops = query.scores[:, None] - scores
    return torch.einsum("bn,nhw->bhw", drops, patches) / patches.sum(0)
