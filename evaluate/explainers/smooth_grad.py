"""SmoothGrad (Smilkov et al., arXiv 1706.03825): the image gradient averaged over noisy copies."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError
from evaluate.explainers.input_gradient import image_gradient, reduce_colours
from evaluate.explainers.query import Query


def smooth_grad(query: Query, samples: int = 50, noise: float = 0.15, reduce: str = "max_abs") -> Tensor:
    """Mean gradient over `samples` copies with Gaussian noise of `noise` times the image's range.

    Args:
        query: what is explained; the noise of each image comes from its own generator.
        samples: n, at most 50 in the paper.
        noise: sigma / (max - min), 0.1 to 0.2 in the paper.
        reduce: see `reduce_colours`.

    Returns:
        (B, H, W) at the image's resolution.

    Raises:
        UserError: fewer than one sample.
    """
    if samples < 1:
        raise UserError(f"smooth_grad: {samples} samples; take at least 1")
    images, generators = query.images, query.generators()
    sigma = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    total = torch.zeros_like(images, dtype=torch.float32)
    for _ in range(samples):
        drawn = torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators])
        noisy = images + sigma * drawn.to(images.device)

        def work(part: slice, noisy: Tensor = noisy) -> Tensor:
            index = torch.arange(part.start, part.stop, device=images.device)
            return image_gradient(query, noisy[part], index)

        total += query.micro_batch.run(len(images), work, cost=4)
    return reduce_colours(total / samples, reduce)
