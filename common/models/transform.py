"""How an image enters a model: resize, centre crop, normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@lru_cache(maxsize=64)  # a GPU would be waited for at every batch
@torch.inference_mode(False)
def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(-1, 1, 1)


@dataclass(frozen=True)
class ModelTransform:
    """Preprocessing of one model."""

    resize: int = 256
    """Short side after resizing, in pixels; both sides with `squash`."""
    crop: int = 224
    """Side of the central square that the model sees, in pixels."""
    interpolation: str = "bicubic"
    """`bicubic` or `bilinear` (with antialiasing, as PIL does)."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted per channel, on the 0..1 scale."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divided by per channel."""
    squash: bool = False
    """Resize to a square, whatever the shape, as some of timm's models want it."""

    def geometry(self) -> v2.Transform:
        """PIL image -> uint8 tensor (3, crop, crop): what the model sees, before normalisation."""
        mode = v2.InterpolationMode(self.interpolation)
        size = (self.resize, self.resize) if self.squash else self.resize
        return v2.Compose([v2.Resize(size, mode), v2.CenterCrop(self.crop), v2.PILToTensor()])

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> the model's float32 input, on the same device."""
        scaled = pixels.float() / 255
        return (scaled - _by_channel(self.mean, pixels.device)) / _by_channel(self.std, pixels.device)

    def field_of_view(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part of an image that the model sees, (x0, y0, x1, y1) in that image's pixels."""
        seen = self.crop / self.resize
        seen_height, seen_width = (seen * (side if self.squash else min(height, width)) for side in (height, width))
        x0, y0 = (width - seen_width) / 2, (height - seen_height) / 2
        return x0, y0, x0 + seen_width, y0 + seen_height
