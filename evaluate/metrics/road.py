"""ROAD (Rong et al., ICML 2022): pixels removed by noisy linear imputation, which leaves no edges."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor

from common.errors import UserError
from evaluate.metrics.case import Case
from evaluate.metrics.measure import Measure

_NEIGHBOURS = {(y, x): 1 / 6 if 0 in (y, x) else 1 / 12 for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)}
"""Weights of the eight neighbours: 1/6 beside and above, 1/12 diagonally."""


def impute(image: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Replace the pixels that are not kept by the weighted mean of their neighbours, all solved together.

    Neighbours outside the frame do not count.

    Args:
        image: (C, H, W).
        keep: (H, W) bool.

    Returns:
        (C, H, W) float64.
    """
    channels, height, width = image.shape
    missing = np.flatnonzero(~keep)
    filled = image.astype(np.float64).reshape(channels, -1).copy()
    if len(missing) == 0 or keep.sum() == 0:
        return filled.reshape(image.shape)
    number = np.full(keep.size, -1)
    number[missing] = np.arange(len(missing))
    rows, columns = missing // width, missing % width
    total = np.zeros(len(missing))
    known = np.zeros((len(missing), channels))
    entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for (dy, dx), weight in _NEIGHBOURS.items():
        inside = (rows + dy >= 0) & (rows + dy < height) & (columns + dx >= 0) & (columns + dx < width)
        own = np.flatnonzero(inside)
        other = missing[own] + dy * width + dx
        total[own] += weight
        is_known = number[other] < 0
        known[own[is_known]] += weight * filled[:, other[is_known]].T
        free = own[~is_known]
        entries.append((free, number[other[~is_known]], np.full(len(free), -weight)))
    entries.append((np.arange(len(missing)), np.arange(len(missing)), total))
    at, to, values = (np.concatenate(parts) for parts in zip(*entries))
    system = coo_matrix((values, (at, to)), shape=(len(missing), len(missing))).tocsc()
    filled[:, missing] = spsolve(system, known).reshape(len(missing), channels).T
    return filled.reshape(image.shape)


def road(
    case: Case, percentages: tuple[int, ...] = (10, 20, 30, 40, 50, 60, 70, 80, 90), noise: float = 0.01
) -> Tensor:
    """Mean over percentages of (p after removing the least salient - p after removing the most salient) / 2.

    The combined form of pytorch-grad-cam (least minus most relevant first, halved), on the softmax probability of
    the target where that library takes the score. The authors' code (tleemann/road_evaluation) gives accuracy and
    probability of each order separately.

    Args:
        case: images, maps, targets.
        percentages: of the pixels removed, 1..99.
        noise: standard deviation of what is added to imputed pixels, which lie in 0..1 before normalisation, as in
            the authors' code; drawn once per image. (pytorch-grad-cam adds the same number to normalised pixels, with
            ImageNet's statistics 4.4 times less noise: at most 0.02 away on an image.)

    Returns:
        (B,) in -0.5..0.5, NaN for a constant map, which does not order the pixels.

    Raises:
        UserError: a percentage outside 1..99, or the model's mean and std are unknown.
    """
    if not all(0 < p < 100 for p in percentages):
        raise UserError(f"percentages {percentages}; each must lie between 0 and 100")
    batch, pixels = len(case.images), case.size[0] * case.size[1]
    order = case.resized.flatten(1).argsort(dim=1, descending=True, stable=True).cpu().numpy()
    pictures = case.images.float().cpu().numpy()
    unit = noise / torch.tensor(case.query.statistics()[1]).view(-1, 1, 1)
    drawn = [unit * torch.randn(case.images.shape[1:], generator=g) for g in case.query.generators()]
    count = 2 * len(percentages)

    def make(rows: Tensor) -> tuple[Tensor, Tensor]:
        index = rows // count
        out = []
        for image, which in zip(index.tolist(), (rows % count).tolist()):
            removed = round(pixels * percentages[which // 2] / 100)
            keep = np.ones(pixels, dtype=bool)
            keep[order[image][:removed] if which % 2 else order[image][pixels - removed :]] = False
            keep = keep.reshape(case.size)
            filled = torch.from_numpy(impute(pictures[image], keep)).float()
            out.append(torch.where(torch.from_numpy(keep), filled, filled + drawn[image]))
        return torch.stack(out).to(case.images), index

    after = case.perturbed(batch * count, make, case.targets).view(batch, len(percentages), 2)
    return ((after[:, :, 0] - after[:, :, 1]).mean(1) / 2).where(~case.constant, torch.nan)


ENTRIES = (Measure("road", road, "higher"),)
