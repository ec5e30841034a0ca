"""Conceptors (Jaeger, arXiv 1403.3369): soft projections learnt from states, and their Boolean algebra.

All matrices are symmetric, with eigenvalues in [0, 1] for conceptors; float64 is advised.
"""

from __future__ import annotations

import torch
from torch import Tensor

NULL = 1e-12
"""Eigenvalues up to this value count as 0."""


def correlation(states: Tensor, weights: Tensor | None = None) -> Tensor:
    """Uncentred correlation R = E[x x^T] of states (..., n, d), weighted by (..., n) >= 0; (..., d, d).

    Weights that sum to 0 give R = 0.
    """
    if weights is None:
        weights = states.new_ones(states.shape[:-1])
    total = weights.sum(-1, keepdim=True)
    shares = torch.where(total > 0, weights / total, 0)
    return (states * shares[..., None]).mT @ states


def conceptor(correlations: Tensor, aperture: float) -> Tensor:
    """C(R, a) = R (R + a^-2 I)^-1, the minimiser of E|x - C x|^2 + a^-2 |C|^2 (Frobenius); (..., d, d)."""
    identity = _identity(correlations)
    solved = torch.linalg.solve(correlations + identity / aperture**2, correlations, left=False)
    return _symmetric(solved)


def change_aperture(c: Tensor, factor: float) -> Tensor:
    """phi(C, g) = C (C + g^-2 (I - C))^-1; C(R, a) becomes C(R, g a).

    By eigenvalues s -> s / (s + g^-2 (1 - s)), which also holds for singular C.
    """
    values, vectors = torch.linalg.eigh(c)
    return (vectors * (values / (values + (1 - values) / factor**2))[..., None, :]) @ vectors.mT


def negation(c: Tensor) -> Tensor:
    """NOT C = I - C."""
    return _identity(c) - c


def conjunction(c: Tensor, b: Tensor) -> Tensor:
    """C AND B, also for singular matrices; (d, d).

    W (W^T (pinv C + pinv B - I) W)^-1 W^T, where the columns of W span the intersection of both ranges (Jaeger,
    Sec. 3.8); for invertible matrices (C^-1 + B^-1 - I)^-1.
    """
    null_c, inverse_c = _null_and_inverse(c)
    null_b, inverse_b = _null_and_inverse(b)
    # The intersection of two ranges is what is orthogonal to both null spaces.
    values, vectors = torch.linalg.eigh(null_c @ null_c.mT + null_b @ null_b.mT)
    shared = vectors[:, values <= NULL]
    inner = shared.mT @ (inverse_c + inverse_b - _identity(c)) @ shared
    return _symmetric(shared @ torch.linalg.solve(inner, shared.mT))


def disjunction(c: Tensor, b: Tensor) -> Tensor:
    """C OR B = NOT (NOT C AND NOT B); for one aperture it is the conceptor of R + Q; (d, d)."""
    return negation(conjunction(negation(c), negation(b)))


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def _null_and_inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal basis of the null space, (d, n), and the pseudo-inverse, (d, d)."""
    values, vectors = torch.linalg.eigh(matrix)
    zero = values <= NULL
    inverted = torch.where(zero, 0, 1 / values.where(~zero, torch.ones_like(values)))
    return vectors[:, zero], (vectors * inverted) @ vectors.mT
