"""Conceptor-CAM: a reconstruction, not verified against the paper (arXiv 2201.08636).

Of the paper only the abstract and the algebra of conceptors are known: it learns inter- and intra-channel relations by
conceptors, combines positive and pseudo-negative evidence by Boolean operations, and works with the weights of any CAM.
Everything else here is our choice:

1. Base: channel weights w of a CAM, and its map m = min-max(ReLU(sum_k w_k A_k)) in [0, 1].
2. Inter-channel states: the channel vectors a_p (C) of each position p. Positive evidence weighs position p by
   m_p, pseudo-negative evidence by 1 - m_p: R+ = sum m_p a_p a_p^T / sum m_p, R- likewise with 1 - m_p.
3. Intra-channel states: the maps A_k (hw) of each channel k. Positive evidence weighs channel k by ReLU(w_k),
   pseudo-negative evidence by ReLU(-w_k).
4. Scale: in both, R+ and R- are divided by the mean eigenvalue, over the span of the states, of the two
   together; the aperture then means the same in every layer and network.
5. Boolean expression: C = C(R+, a) AND NOT C(R-, a).
6. Map: ReLU(sum_k w_k A'_k) with A' = C_inter A C_intra.

Why the weights in 2 and 3: with the same unweighted activations on both sides and matched apertures,
C_inter A = A C_intra holds identically, and the two relations would be one filter. Weighted by positions on one
side and by channels on the other, they differ.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.errors import UserError
from evaluate.explainers import grad_cam, grad_cam_pp, xgrad_cam
from evaluate.explainers.conceptor import conceptor, conjunction, correlation, negation
from evaluate.explainers.explainer import SIGNED, Explainer
from evaluate.maps.arithmetic import min_max
from evaluate.network.layout import zero_where_broken

BASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_cam": lambda _features, gradients: grad_cam.channel_weights(gradients),
    "grad_cam_pp": grad_cam_pp.channel_weights,
    "xgrad_cam": xgrad_cam.channel_weights,
}
"""CAMs that give channel weights (B, C, 1, 1) from features and gradients."""


def conceptor_cam(
    features: Tensor, gradients: Tensor, aperture: float = 1.0, base: str = "grad_cam", relu: bool = True
) -> Tensor:
    """ReLU(sum_k w_k (C_inter A C_intra)_k); a reconstruction, not verified against the paper (see the module).

    Args:
        features: A, (B, C, h, w).
        gradients: (B, C, h, w).
        aperture: of all conceptors; larger lets more through.
        base: the CAM whose channel weights are taken, a name of `BASES`.
        relu: drop negative evidence; False: the signed map.

    Returns:
        (B, h, w), at least 0 with `relu`; 0 where features or gradients are not finite.

    Raises:
        UserError: unknown base, or an aperture that is not positive.
    """
    if base not in BASES:
        raise UserError(f"conceptor_cam: base {base!r}; take one of {', '.join(BASES)}")
    if not aperture > 0:
        raise UserError(f"conceptor_cam: aperture {aperture}; it must be above 0")
    features = zero_where_broken(features)
    weights = zero_where_broken(BASES[base](features, gradients)[:, :, 0, 0]).double()
    states = features.flatten(2).double()  # (B, C, hw)
    maps = []
    for image, weight in zip(states, weights):
        inter, intra = filters(image, weight, features.shape[2:], aperture)
        maps.append(weight @ inter(image) @ intra)
    signed = torch.stack(maps).to(features.dtype).unflatten(1, features.shape[2:])
    return signed.relu() if relu else signed


def filters(
    image: Tensor, weight: Tensor, grid: torch.Size, aperture: float
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The inter-channel filter, as a function of (C, n), and the intra-channel filter, (hw, hw).

    Args:
        image: activations of one image, (C, hw) float64.
        weight: CAM weights, (C,).
        grid: (h, w).
        aperture: of all conceptors.
    """
    salience = min_max((weight @ image).relu().view(1, *grid)).flatten()
    # Every inter-channel state lies in the span of the hw channel vectors: outside it C(R+) is 0, and so is the
    # conjunction; inside, C x C matrices shrink to at most hw x hw without loss.
    basis = _span(image)
    rank = basis.shape[1]
    inter = _evidence((basis.mT @ image).mT, salience, 1 - salience, rank, aperture)
    intra = _evidence(image, weight.relu(), (-weight).relu(), rank, aperture)
    return (lambda x: basis @ (inter @ (basis.mT @ x))), intra


def _span(image: Tensor) -> Tensor:
    """Orthonormal basis (C, r) of the column space of (C, hw)."""
    vectors, values, _ = torch.linalg.svd(image, full_matrices=False)
    return vectors[:, values > values[0] * 1e-9] if len(values) and values[0] > 0 else vectors[:, :1]


def _evidence(states: Tensor, positive: Tensor, negative: Tensor, rank: int, aperture: float) -> Tensor:
    """C(R+) AND NOT C(R-) of states (n, d) that span `rank` dimensions, with two weights (n,) each; (d, d)."""
    plus, minus = correlation(states, positive), correlation(states, negative)
    scale = (plus.trace() + minus.trace()) / 2 / rank
    if scale > 0:
        plus, minus = plus / scale, minus / scale
    return conjunction(conceptor(plus, aperture), negation(conceptor(minus, aperture)))


ENTRIES = (
    Explainer(
        "conceptor_cam",
        conceptor_cam,
        "gradient",
        SIGNED,
        verified=False,
        note="reconstruction: not verified against the paper",
    ),
)
