"""Opti-CAM (Zhang et al., CVIU 248, 2024): the convex combination of channels whose mask keeps the score highest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.errors import UserError
from evaluate.explainers.explainer import Explainer
from evaluate.maps.arithmetic import min_max
from evaluate.network.query import Query, Substrate


def _maximum(maps: Tensor) -> Tensor:
    top = maps.amax((1, 2), keepdim=True)
    return torch.where(top > 0, maps / top.where(top > 0, torch.ones_like(top)), 0)


NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "range": min_max,  # eq. 16
    "max": _maximum,  # eq. 17
    "sigmoid": torch.sigmoid,  # eq. 18
}
"""From the upsampled map to the mask; a map without range or maximum becomes 0, as n(0) := 0 in Sec. 3.1."""

OBJECTIVES = ("mask", "diff", "io_mask", "io_diff")
"""Equations 10, 19, F.1 and F.2."""


def opti_cam(
    query: Query,
    objective: str = "mask",
    normalisation: str = "range",
    iterations: int = 100,
    learning_rate: float = 0.1,
    tolerance: float = 1e-10,
    substrate: Substrate = "black",
) -> Tensor:
    """S = sum_k softmax(u)_k ReLU(A_k), with u maximising F (Sec. 3) by Adam from u = 0.5, image by image.

    With s = n(up(S)), x (.) s the image masked by it before normalisation, and g the target's logit:
    `mask` F = g(x (.) s); `diff` F = -|g(x) - g(x (.) s)|; `io_mask` F = g(x (.) s) - g(x (.) (1 - s));
    `io_diff` F = -|g(x) - g(x (.) s)| + |g(x) - g(x (.) (1 - s))|.

    Images do not influence one another: Adam works on each number alone, and an image whose F changes by less
    than `tolerance` between two iterations stops there and is no longer computed. (The published code stops the
    whole batch when its loss has risen over a tenth of the iterations; the paper describes what is done here.)

    In float32 the score of a map can be reproduced, but not its details, as Adam turns the rounding of tiny gradients
    into steps: after 100 iterations the authors' code was up to 0.76 away from itself when 1e-6 was added to the image,
    and this code as far from theirs (correlation 0.85 to 0.99 on 8 photographs). In float64 the two agree to 1.7e-13.

    Args:
        query: what is explained.
        objective: a name of `OBJECTIVES`.
        normalisation: n, a name of `NORMALISATIONS`.
        iterations: at most so many; 100 in the paper (App. A), 50 in the authors' script.
        learning_rate: of Adam.
        tolerance: of the stopping rule.
        substrate: colour of hidden pixels; `black`, as the mask multiplies the image in 0..1. `mean` masks the
            normalised tensor, which is another explainer.

    Returns:
        (B, h, w), S at the layer's resolution; n(up(S)) is the mask.

    Raises:
        UserError: unknown objective or normalisation, or nothing tells the model's mean and std.
    """
    if objective not in OBJECTIVES:
        raise UserError(f"opti_cam: objective {objective!r}; take one of {', '.join(OBJECTIVES)}")
    if normalisation not in NORMALISATIONS:
        raise UserError(f"opti_cam: normalisation {normalisation!r}; take one of {', '.join(NORMALISATIONS)}")
    if iterations < 1:
        raise UserError(f"opti_cam: {iterations} iterations; take at least 1")
    features = query.features.relu()
    normalise = NORMALISATIONS[normalisation]

    def value(u: Tensor, index: Tensor) -> Tensor:
        """F of the images at `index`, (n,)."""
        masks = normalise(query.upsample(_combine(u, features[index])))
        images = query.images[index]
        inside = query.read(query.forward(query.mask(images, masks, substrate)), index)
        if objective == "mask":
            return inside
        whole = query.scores[index]
        if objective == "diff":
            return -(whole - inside).abs()
        outside = query.read(query.forward(query.mask(images, 1 - masks, substrate)), index)
        if objective == "io_mask":
            return inside - outside
        return (whole - outside).abs() - (whole - inside).abs()

    def work(part: slice) -> Tensor:
        chosen = torch.arange(part.start, part.stop, device=features.device)
        u = _maximise(lambda u, rows: value(u, chosen[rows]), features[part], iterations, learning_rate, tolerance)
        return _combine(u, features[part])

    # The backward pass holds every layer's activations: an image costs as much as several in a forward pass.
    return query.micro_batch.run(len(features), work, cost=4)


def _combine(u: Tensor, features: Tensor) -> Tensor:
    """S, (n, h, w), from u (n, C) and features (n, C, h, w)."""
    return torch.einsum("nc,nchw->nhw", u.softmax(1), features)


def _maximise(
    value: Callable[[Tensor, Tensor], Tensor],
    features: Tensor,
    iterations: int,
    learning_rate: float,
    tolerance: float,
) -> Tensor:
    """u (n, C) after ascending `value(u of the active rows, those rows)` row by row; detached."""
    count = len(features)
    u = features.new_full(features.shape[:2], 0.5).requires_grad_()
    optimiser = torch.optim.Adam([u], lr=learning_rate)
    before = features.new_full((count,), torch.inf)
    active = torch.arange(count, device=features.device)
    for _ in range(iterations):
        with torch.enable_grad():
            current = value(u[active], active)
            (gradient,) = torch.autograd.grad(-current.sum(), u)
        with torch.no_grad():
            kept = u.detach().clone()
            u.grad = gradient
            optimiser.step()
            moved = torch.zeros(count, 1, dtype=torch.bool, device=u.device)
            moved[active] = True
            u.copy_(torch.where(moved, u, kept))  # Adam's momentum would carry the finished rows on
            change = (current.detach() - before[active]).abs()
            before[active] = current.detach()
            active = active[~(change < tolerance)]
        if len(active) == 0:
            break
    return u.detach()


ENTRIES = (Explainer("opti_cam", opti_cam, "optimisation"),)
