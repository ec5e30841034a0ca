"""The gradient of the target score with respect to the image (Simonyan et al., ICLR workshop 2014)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from evaluate.explainers.explainer import SUM, Explainer
from evaluate.network.layout import full
from evaluate.network.query import Query


def image_gradient(query: Query, images: Tensor, index: Tensor) -> Tensor:
    """Gradient of each row's target score with respect to the normalised image, (N, 3, H, W) float32.

    Args:
        query: what is explained.
        images: (N, 3, H, W).
        index: (N,) the image of the query each row belongs to.
    """
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        score = query.targets.scores(query.forward_eager(leaf), index).sum()
        (gradient,) = torch.autograd.grad(score, leaf)
    return full(gradient)


def batched_gradient(query: Query, within: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Tensor:
    """`image_gradient` of the query's own images, in slices that fit into memory, each `within` its own context."""

    def work(part: slice) -> Tensor:
        index = torch.arange(part.start, part.stop, device=query.images.device)
        with within():
            return image_gradient(query, query.images[part], index)

    return query.micro_batch.run(len(query.images), work, cost=4)


def reduce_colours(gradient: Tensor, reduce: str) -> Tensor:
    """(B, 3, H, W) -> (B, H, W): `max_abs` (Simonyan), `sum_abs`, or `sum` (signed).

    Raises:
        UserError: unknown name.
    """
    if reduce == "max_abs":
        return gradient.abs().amax(1)
    if reduce == "sum_abs":
        return gradient.abs().sum(1)
    if reduce == "sum":
        return gradient.sum(1)
    raise UserError(f"reduce {reduce!r}; take max_abs, sum_abs or sum")


def input_gradient(query: Query, reduce: str = "max_abs") -> Tensor:
    """Largest absolute gradient over the colours, as in captum's Saliency and by default in Harmonization.

    Returns:
        (B, H, W) at the image's resolution.
    """
    return reduce_colours(batched_gradient(query), reduce)


ENTRIES = (Explainer("input_gradient", input_gradient, "image gradient", SUM, at_layer=False),)
