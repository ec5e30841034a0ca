"""Operations on maps that several rooms need: min-max, resize, top share, overlap, the centre map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError


def min_max(maps: Tensor) -> Tensor:
    """Each map (N, h, w) scaled to 0..1; a constant map becomes 0. Gradients flow through both ends."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (maps - low) / spread.where(spread > 0, torch.ones_like(spread)), 0)


def is_constant(maps: Tensor) -> Tensor:
    """(B, h, w) -> (B,) bool: whether all values of a map are equal, so that it says nothing."""
    return maps.amax((1, 2)) <= maps.amin((1, 2))


def constant_as_before(before: Tensor, after: Tensor) -> Tensor:
    """Maps after a resize; constant ones, which its rounding would turn into noise, keep their value."""
    return torch.where(is_constant(before)[:, None, None], before[:, :1, :1], after)


def top_share(maps: Tensor, percent: float) -> Tensor:
    """(B, N) -> (B, N) bool: values above the (100 - percent)th percentile (linear interpolation, as NumPy's)."""
    if not 0 < percent <= 100:
        raise UserError(f"the top {percent} % of a map; take more than 0 and at most 100")
    # No value lies between the two that the percentile is interpolated from, so comparing with the lower one is enough.
    lower = int((maps.shape[1] - 1) * (1 - percent / 100))
    return maps > maps.kthvalue(lower + 1, 1, keepdim=True).values


def dice_of(ours: Tensor, theirs: Tensor) -> Tensor:
    """`dice` of (B, N) bool each."""
    return 2 * (ours & theirs).sum(1) / (ours.sum(1) + theirs.sum(1)).clamp(min=1)


def iou_of(ours: Tensor, theirs: Tensor) -> Tensor:
    """`iou` of (B, N) bool each."""
    return (ours & theirs).sum(1) / (ours | theirs).sum(1).clamp(min=1)


def resize_saliency(saliency: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Saliency (B, h, w) -> (B, size, size) or (B, *size), bilinear, in float32 and contiguous.

    A thresholded map has large plateaus of equal values, which the resize turns into nearly equal floats:
    ranks depend on the rounding, so layout and type are fixed here. A constant map stays constant.
    """
    height, width = (size, size) if isinstance(size, int) else size
    maps = saliency.float().contiguous()
    if tuple(maps.shape[1:]) == (height, width):
        return maps
    resized = F.interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)
    return constant_as_before(maps, resized[:, 0])


def centre_map(size: int, device: torch.device) -> Tensor:
    """The centre-bias baseline (size, size): the nearer to the middle, the higher.

    Its ranks are those of an isotropic Gaussian of any width; whole numbers keep ties exact.
    """
    line = 2 * torch.arange(size, device=device) - (size - 1)
    return -(line[:, None] ** 2 + line**2)
