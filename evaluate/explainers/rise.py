"""RISE (Petsiuk et al., BMVC 2018): random masks, weighed by what the network says of the image behind them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from evaluate.explainers.query import Query, Substrate


def random_masks(
    count: int, size: tuple[int, int], cells: int, keep: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Small binary grids and the shift of each after upsampling.

    Returns:
        (count, cells, cells) float32 of 0 and 1, and (count, 2) int64 with shifts below one cell.
    """
    grids = (torch.rand(count, cells, cells, generator=generator) < keep).float()
    steps = [math.ceil(side / cells) for side in size]
    shifts = torch.stack([torch.randint(0, step, (count,), generator=generator) for step in steps], 1)
    return grids, shifts


def grow(grids: Tensor, shifts: Tensor, size: tuple[int, int]) -> Tensor:
    """Grids (n, s, s) -> masks (n, H, W): bilinear to (s + 1) cells a side, cut at the shift."""
    cells = grids.shape[-1]
    up = tuple((cells + 1) * math.ceil(side / cells) for side in size)
    large = F.interpolate(grids[:, None], up, mode="bilinear", align_corners=False)[:, 0]
    cut = [m[y : y + size[0], x : x + size[1]] for m, (y, x) in zip(large, shifts.tolist())]
    return torch.stack(cut)


def rise(query: Query, masks: int = 4000, cells: int = 8, keep: float = 0.5, substrate: Substrate = "mean") -> Tensor:
    """S = sum_i p_i M_i / (N keep), p_i the probability of the target class behind mask M_i.

    All images see the same masks, drawn from the query's seed.

    Args:
        query: what is explained; the targets must be classes.
        masks: N. The authors' notebooks take 6000 (and keep 0.1), the paper 4000 for VGG16, 8000 for ResNet50.
        cells: side s of the small grid.
        keep: probability of a cell to be shown, 0.5 in the paper.
        substrate: colour of hidden pixels; `mean`, as the authors multiply the normalised tensor.

    Returns:
        (B, H, W) at the image's resolution.

    Raises:
        UserError: no masks, or a probability that is none.
    """
    if masks < 1 or not 0 < keep < 1:
        raise UserError(f"rise: {masks} masks, keep {keep}; take at least one mask and 0 < keep < 1")
    images = query.images
    batch, size = len(images), (images.shape[2], images.shape[3])
    grids, shifts = random_masks(masks, size, cells, keep, query.generator())
    grids, shifts = grids.to(images.device), shifts.to(images.device)
    saliency = images.new_zeros(batch, *size, dtype=query.logits.dtype)

    # One slice of masks at a time for all images, so that no mask is made twice or kept.
    step = max(query.micro_batch.size // batch, 1)
    for start in range(0, masks, step):
        part = grow(grids[start : start + step], shifts[start : start + step], size)

        def perturb(rows: Tensor, part: Tensor = part) -> tuple[Tensor, Tensor]:
            index = rows % batch
            return query.mask(images[index], part[rows // batch], substrate), index

        probability = query.score_perturbed(len(part) * batch, perturb, probability=True).view(len(part), batch)
        saliency += torch.einsum("nb,nhw->bhw", probability, part.to(probability.dtype))
    return saliency / (masks * keep)
