"""Saliency maps laid over images, for people to look at."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

from evaluate.maps.arithmetic import min_max


def overlay(pixels: Tensor, saliency: Tensor, opacity: float = 0.5) -> Image.Image:
    """Blend a saliency map over an image.

    Args:
        pixels: (3, H, W) uint8.
        saliency: (H, W), any scale; min-max normalised here.
        opacity: of the colours, 0 to 1.
    """
    picture = pixels.permute(1, 2, 0).numpy().astype(np.float32)
    colours = (
        matplotlib.colormaps["turbo"](min_max(saliency.float()[None])[0].numpy())[..., :3].astype(np.float32) * 255
    )
    return Image.fromarray((picture * (1 - opacity) + colours * opacity).round().astype(np.uint8))


def to_image(pixels: Tensor) -> Image.Image:
    """An image (3, H, W) of uint8, for Pillow."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def data_uri(image: Image.Image, quality: int = 85) -> str:
    """An image as a `data:` address, for a page that opens without a network."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
