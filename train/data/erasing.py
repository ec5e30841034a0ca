"""Random erasing (Zhong et al., arXiv 1708.04896), drawn by the loader's processes and carried out on the device.

timm erases normalised images. Raw pixels are a quarter of their bytes, so those travel to the device, which
normalises them; the patches to put into them, drawn beside each image from its own seed, come along.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from train.settings import Settings


class Patch(NamedTuple):
    """A rectangle that replaces a part of a normalised image."""

    top: int
    left: int
    pixels: Tensor
    """float32 (3, height, width)."""


class PatchDraw:
    """Draws the patch that timm's random erasing would put into a training image, from the global generators."""

    def __init__(self, settings: Settings) -> None:
        self.size = settings.data.image_size
        self.erasing = RandomErasing(settings.augment.erase_prob, mode=settings.augment.erase_mode, device="cpu")

    def __call__(self) -> Patch | None:
        """The patch, or None where the image stays whole."""
        canvas = _Canvas(self.size)
        self.erasing(canvas)
        return canvas.patch


class _Canvas:
    """Stands for a normalised image (3, S, S) and keeps what is written into it."""

    dtype = torch.float32

    def __init__(self, side: int) -> None:
        self.side = side
        self.patch: Patch | None = None

    def size(self) -> tuple[int, int, int]:
        return 3, self.side, self.side

    def __setitem__(self, place: tuple[slice, slice, slice], pixels: Tensor) -> None:
        _, rows, columns = place
        self.patch = Patch(
            rows.start, columns.start, pixels.expand(3, rows.stop - rows.start, columns.stop - columns.start)
        )


class Erasing(NamedTuple):
    """The patches of a batch, packed into two tensors, since each tensor costs a process a file descriptor."""

    boxes: Tensor
    """int64 (N, 5): index of the image in the batch, top, left, height, width."""
    pixels: Tensor
    """float32: the pixels of all patches, one after the other."""

    @classmethod
    def pack(cls, patches: list[Patch | None]) -> Erasing:
        """From one patch, or None, for each image of the batch."""
        found = [(image, patch) for image, patch in enumerate(patches) if patch is not None]
        boxes = [(image, patch.top, patch.left, *patch.pixels.shape[1:]) for image, patch in found]
        pixels = [patch.pixels.flatten() for _, patch in found]
        return cls(torch.tensor(boxes, dtype=torch.long).view(-1, 5), torch.cat([torch.empty(0), *pixels]))

    def erase(self, images: Tensor) -> None:
        """Put the patches into the normalised batch (B, 3, H, W)."""
        pixels = self.pixels.to(images.device, non_blocking=True)
        for image, top, left, height, width in self.boxes.tolist():
            patch, pixels = pixels.tensor_split([3 * height * width])
            images[image, :, top : top + height, left : left + width] = patch.view(3, height, width)
