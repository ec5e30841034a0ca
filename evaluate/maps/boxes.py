"""Object boxes: moved into a model's view, drawn as masks, found in a saliency map, and their overlap.

A box is x0, y0, x1, y1 in pixels, edges between pixels: the first pixel spans 0..1.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from common.models.transform import ModelTransform


def boxes_in_view(boxes: Tensor, width: int, height: int, transform: ModelTransform) -> Tensor:
    """Boxes (n, 4) of an image of that size -> in pixels of what the model sees; not clipped."""
    x0, y0, x1, y1 = transform.field_of_view(height, width)
    shift, seen = boxes.new_tensor([x0, y0, x0, y0]), boxes.new_tensor([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
    return (boxes - shift) * (transform.crop / seen)


def clip_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (n, 4) cut to the view; those outside it are dropped."""
    boxes = boxes.float().reshape(-1, 4)
    limits = boxes.new_tensor([width, height, width, height])
    clipped = boxes.clamp(min=0).minimum(limits)
    return clipped[(clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])]


def box_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """(n, H, W) bool, the pixels whose centres lie in each box; n = 0 gives (1, H, W) of False."""
    if len(boxes) == 0:
        return torch.zeros(1, height, width, dtype=torch.bool, device=boxes.device)
    rows = torch.arange(height, device=boxes.device)[:, None] + 0.5
    columns = torch.arange(width, device=boxes.device)[None, :] + 0.5
    x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
    return (columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1)


def overlap(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of one box (4,) with each of (n, 4); (n,), 0 for an empty box."""
    low, high = torch.maximum(box[:2], boxes[:, :2]), torch.minimum(box[2:], boxes[:, 2:])
    inner = (high - low).clamp(min=0).prod(1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - inner
    return torch.where(union > 0, inner / union, 0)


def largest_component_box(binary: np.ndarray, neighbours: int) -> tuple[int, int, int, int]:
    """Box around the largest component of (H, W) bool, all 0 if there is none; of equal ones, around the first.

    Args:
        binary: (H, W).
        neighbours: of a pixel, 4 (beside, above and below) or 8 (diagonal ones too).
    """
    labelled, count = ndimage.label(binary, ndimage.generate_binary_structure(2, 1 if neighbours == 4 else 2))
    if count == 0:
        return 0, 0, 0, 0
    largest = 1 + int(np.argmax(np.bincount(labelled.ravel())[1:]))
    rows, columns = np.divmod(np.flatnonzero(labelled == largest), binary.shape[1])
    return int(columns.min()), int(rows[0]), int(columns.max()) + 1, int(rows[-1]) + 1
