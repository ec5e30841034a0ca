"""RISE (Petsiuk et al., BMVC 2018): random masks, weighted by the probability of the class behind them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.errors import UserError
from evaluate.explainers.explainer import Explainer
from evaluate.network.query import Query, Substrate


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
    """Grids (n, s, s) -> masks (n, H, W): bilinear to s + 1 cells per side, cut at the shift.

    Beyond its outermost cells' centres the grid is mirrored about them, as the authors' call of scikit-image's
    `resize` does (`mode="reflect"`).
    """
    cells = grids.shape[-1]
    down, across = (
        _weights(cells, (cells + 1) * math.ceil(side / cells), grids)[first[:, None] + torch.arange(side).to(first)]
        for side, first in zip(size, shifts.T)
    )
    return down @ grids @ across.mT


def _weights(cells: int, length: int, like: Tensor) -> Tensor:
    """(length, cells) share of each cell in pixels between the cells' centres, along a side."""
    place = ((torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) * cells / length - 0.5).abs()
    place = (cells - 1 - (cells - 1 - place).abs()).clamp(min=0)  # of a single cell all of it
    return (1 - (place[:, None] - torch.arange(cells, device=like.device)).abs()).relu()


def rise(query: Query, masks: int = 4000, cells: int = 8, keep: float = 0.5, substrate: Substrate = "mean") -> Tensor:
    """S = sum_i p_i M_i / (N keep), p_i the probability of the target class behind mask M_i.

    All images see the same masks, drawn from the query's seed. The authors' code (eclique/RISE) has no defaults: its
    three notebooks take 2000, 6000 and 5000 masks of 8, 8 and 10 cells, kept with 0.5, 0.1 and 0.1.

    Args:
        query: what is explained; the targets must be classes.
        masks: N, in the paper 4000 for VGG16 and 8000 for ResNet50.
        cells: side s of the small grid; 7 in TorchRay and xplique.
        keep: probability that a cell is shown, 0.5 in the paper.
        substrate: colour of hidden pixels; `mean`, as the authors multiply the normalised tensor.

    Returns:
        (B, H, W) at the image's resolution.

    Raises:
        UserError: no masks, or `keep` is not a probability between 0 and 1.
    """
    if masks < 1 or not 0 < keep < 1:
        raise UserError(f"rise: {masks} masks, keep {keep}; take at least one mask and 0 < keep < 1")
    if cells > min(query.images.shape[2:]):
        raise UserError(f"rise: cells={cells}; an image of {tuple(query.images.shape[2:])} pixels has fewer")
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


ENTRIES = (Explainer("rise", rise, "perturbation", at_layer=False),)
