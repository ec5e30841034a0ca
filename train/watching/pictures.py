"""Charts of what the positions and kernels are doing, for TensorBoard and the card."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torchvision.utils import make_grid

from common.atomic import atomic_file
from common.models.transform import ModelTransform
from common.surgery import PositionGroup

_MAX_POINTS = 20_000


_MAX_KERNELS = 24


def batch_grid(images: Tensor, transform: ModelTransform, count: int = 16) -> NDArray[np.uint8]:
    """The first images of a batch as the model sees them: normalised (B, 3, H, W) -> uint8 (H', W', 3)."""
    images = images[:count].detach().float().cpu()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (transform.mean, transform.std))
    pixels = (images * std + mean).clamp(0, 1)
    grid = make_grid(pixels, nrow=math.ceil(math.sqrt(len(pixels))), padding=2)
    return (grid * 255).round().byte().permute(1, 2, 0).numpy()


def positions_figure(groups: list[PositionGroup]) -> Figure:
    """Where the elements of each stage lie in the kernel plane."""
    figure, axes = _row(len(groups))
    for axis, group in zip(axes, groups):
        rows, columns = (t.flatten().cpu() for t in group.rows_columns())
        step = max(1, len(rows) // _MAX_POINTS)
        axis.scatter(columns[::step], rows[::step], s=2, alpha=0.3, linewidths=0)
        height, width = group.layers[0][1].dilated_kernel_size
        axis.set(xlim=(-width / 2, width / 2), ylim=(height / 2, -height / 2), aspect="equal", title=group.name)
        axis.title.set_fontsize(8)
    figure.suptitle("positions of kernel elements (pixels from the centre)", fontsize=9)
    return figure


def kernels_figure(groups: list[PositionGroup]) -> Figure:
    """Constructed kernels of the first channels of each stage's first layer."""
    figure, axes = _row(len(groups))
    for axis, group in zip(axes, groups):
        with torch.no_grad():
            kernels = group.layers[0][1].kernel()[:_MAX_KERNELS, :1].float().cpu()  # (n, 1, K0, K1)
        kernels = kernels / kernels.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
        grid = make_grid(kernels, nrow=6, padding=1, pad_value=float("nan"))[0]
        axis.imshow(grid.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[], title=group.layers[0][0])
        axis.title.set_fontsize(8)
    figure.suptitle("constructed kernels, each scaled to its largest weight", fontsize=9)
    return figure


def displacement_figure(moved: dict[str, Tensor]) -> Figure:
    """How far the elements of each stage have moved, in pixels."""
    figure, axes = _row(len(moved))
    for axis, (name, distance) in zip(axes, moved.items()):
        axis.hist(distance.flatten().numpy(), bins=40)
        axis.set(xlabel="pixels", yticks=[], title=f"{name}\nmean {distance.mean():.2f} px")
        axis.title.set_fontsize(8)
    figure.suptitle("distance of each element from where it started", fontsize=9)
    return figure


def curve_figure(lines: list[dict[str, Any]]) -> Figure:
    """Loss and accuracy of a run against its epochs, from the lines of metrics.jsonl."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, part, label in ((axes[0], "loss", "loss"), (axes[1], "top1", "top-1 (%)")):
        for name in sorted({key for line in lines for key in line if key.endswith(f"/{part}")}):
            points = [(line["epoch"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points), label=name, marker="." if len(points) < 20 else None)
        axis.set(xlabel="epoch", ylabel=label)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    return figure


def _row(count: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(3.2 * count, 3.4), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def figure_pixels(figure: Figure) -> np.ndarray:
    """uint8 (H, W, 3) of a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as a PNG file, whole or not at all."""
    from PIL import Image

    with atomic_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
