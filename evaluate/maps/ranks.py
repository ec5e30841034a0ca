"""Rank correlation of whole batches, on the device where they are."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def average_ranks(x: Tensor) -> Tensor:
    """Ranks of each row, 1 for the smallest value; tied values share the average of their ranks.

    The ranks of human maps can be computed once and compared with several explainers, see
    `spearman_from_ranks`.

    Args:
        x: (B, N) with N > 0, any real dtype, on a device that has float64.

    Returns:
        (B, N) float64 on the same device. A row that holds a NaN has all its ranks NaN.

    Raises:
        ValueError: `x` is not of shape (B, N).
    """
    if x.ndim != 2:
        raise ValueError(f"expected values of shape (B, N), got {tuple(x.shape)}")
    if x.device.type == "cpu" and x.dtype == torch.float32:
        ranks = _ranks_by_radix(x)
    else:
        ranks = _ranks_by_sort(x)
    return ranks.masked_fill_(x.isnan().any(1, keepdim=True), torch.nan)


def _ranks_by_sort(x: Tensor) -> Tensor:
    """One sort for all rows; NaN counts as the largest."""
    rows, columns = x.shape
    ordered, order = x.sort(dim=1)

    # Groups of equal values, over the sorted rows laid end to end: each row opens a new group.
    opens = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[:, 1:], ordered[:, :-1], out=opens[:, 1:])
    starts = opens.flatten().nonzero().squeeze(1)
    sizes = torch.diff(starts, append=starts.new_tensor([x.numel()]))
    # A group at places s ... s+n-1, counted from 0, has the average rank s + (n + 1) / 2.
    group_ranks = starts + (sizes + 1).double() / 2
    sorted_ranks = torch.repeat_interleave(group_ranks, sizes, output_size=x.numel()).view(rows, columns)
    sorted_ranks -= torch.arange(0, x.numel(), columns, device=x.device)[:, None]  # rows count from 0
    return torch.empty_like(sorted_ranks).scatter_(1, order, sorted_ranks)


def _ranks_by_radix(x: Tensor) -> Tensor:
    """Row by row, a share of the rows for each thread, for float32 on a CPU: several times faster there.

    The bits of floats become unsigned integers of the same order, sorted by their lower, then by their upper half:
    NumPy sorts 16-bit integers by radix.
    """
    values = (x + 0.0).contiguous().numpy()  # no negative zero: ties are found by the bits
    ranks = np.empty(values.shape)

    def rank(first: int) -> None:
        for row in range(first, len(values), threads):
            bits = values[row].view(np.int32)
            keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.uint32) ^ np.uint32(0x80000000)
            order = np.argsort(keys.astype(np.uint16), kind="stable")
            order = order[np.argsort((keys >> np.uint32(16)).astype(np.uint16)[order], kind="stable")]
            keys = keys[order]
            bounds = np.concatenate(([0], np.flatnonzero(keys[1:] != keys[:-1]) + 1, [len(keys)]))
            ranks[row][order] = np.repeat((bounds[:-1] + bounds[1:] + 1) / 2, np.diff(bounds))

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(rank, range(threads)))
    return torch.from_numpy(ranks)


def spearman_from_ranks(ranks_a: Tensor, ranks_b: Tensor) -> Tensor:
    """Spearman correlation of rows whose `average_ranks` are given.

    It is Pearson's correlation of the ranks (Spearman, 1904), which holds with ties, as in SciPy's
    `spearmanr`.

    Args:
        ranks_a, ranks_b: (B, N) average ranks.

    Returns:
        (B,) float64 in [-1, 1]. NaN where the correlation does not exist, a row of either side being constant
        or holding a NaN: the caller decides what such an image counts.

    Raises:
        ValueError: the shapes differ.
    """
    if ranks_a.shape != ranks_b.shape or ranks_a.ndim != 2:
        shapes = f"{tuple(ranks_a.shape)} and {tuple(ranks_b.shape)}"
        raise ValueError(f"expected ranks of one shape (B, N), got {shapes}")
    # Average ranks always have this mean, so that the centred ranks are exact and constant rows exactly 0.
    mean = (ranks_a.shape[1] + 1) / 2
    a = ranks_a.double() - mean
    b = ranks_b.double() - mean
    covariance = torch.einsum("bn,bn->b", a, b)
    spread = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (covariance / spread).clamp(-1.0, 1.0)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman correlation of each row of `a` with the same row of `b`.

    Args:
        a, b: (B, N) values, of any real dtypes.

    Returns:
        (B,) float64; NaN for constant rows and rows with a NaN, see `spearman_from_ranks`.

    Raises:
        ValueError: the shapes are not one (B, N).
    """
    return spearman_from_ranks(average_ranks(a), average_ranks(b))
