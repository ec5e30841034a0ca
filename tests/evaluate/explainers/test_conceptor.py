"""Identities of the conceptor algebra; the reconstruction's two filters differ, and shrinking loses nothing."""

import math

import pytest
import torch

from common.errors import UserError
from evaluate.explainers.conceptor import change_aperture, conceptor, conjunction, correlation, disjunction, negation
from evaluate.explainers.conceptor_cam import conceptor_cam, filters
from evaluate.maps.arithmetic import min_max


def states(seed, count=40, size=6, rank=None):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, size, generator=generator, dtype=torch.float64)
    if rank is not None:
        x = x[:, :rank] @ torch.randn(rank, size, generator=generator, dtype=torch.float64)
    return x


def projector(columns):
    q = torch.linalg.qr(columns)[0]
    return q @ q.T


def test_a_conceptor_minimises_its_objective():
    x, aperture = states(0), 1.7
    c = conceptor(correlation(x), aperture)

    def loss(c):
        return ((x - x @ c.T) ** 2).sum(1).mean() + c.pow(2).sum() / aperture**2

    for seed in range(5):
        change = 1e-3 * torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert loss(c + change) > loss(c)


def test_singular_values():
    r = correlation(states(1))
    s = torch.linalg.eigvalsh(r)
    torch.testing.assert_close(torch.linalg.eigvalsh(conceptor(r, 0.8)), s / (s + 0.8**-2))


@pytest.mark.parametrize("rank", [None, 3])
def test_aperture(rank):
    r = correlation(states(2, rank=rank))
    torch.testing.assert_close(change_aperture(conceptor(r, 0.7), 2.5), conceptor(r, 0.7 * 2.5))


def test_boolean_laws_of_invertible_conceptors():
    a, b = (conceptor(correlation(states(seed)), 1.3) for seed in (3, 4))
    identity = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(
        conjunction(a, b), torch.linalg.inv(torch.linalg.inv(a) + torch.linalg.inv(b) - identity)
    )
    torch.testing.assert_close(negation(negation(a)), a)
    torch.testing.assert_close(conjunction(a, b), conjunction(b, a))
    torch.testing.assert_close(conjunction(a, identity), a)
    torch.testing.assert_close(disjunction(a, torch.zeros_like(a)), a)
    torch.testing.assert_close(disjunction(a, b), negation(conjunction(negation(a), negation(b))))
    torch.testing.assert_close(
        conjunction(conjunction(a, b), negation(a)), conjunction(a, conjunction(b, negation(a))), rtol=1e-6, atol=1e-8
    )


def test_or_of_one_aperture_is_the_conceptor_of_the_sum():
    r, q = correlation(states(5)), correlation(states(6, rank=4))
    torch.testing.assert_close(disjunction(conceptor(r, 1.3), conceptor(q, 1.3)), conceptor(r + q, 1.3))


def test_and_not_in_closed_form():
    r, q, aperture = correlation(states(7)), correlation(states(8)), 1.3
    identity = torch.eye(6, dtype=torch.float64)
    expected = torch.linalg.inv(identity + torch.linalg.inv(r) / aperture**2 + q * aperture**2)
    torch.testing.assert_close(conjunction(conceptor(r, aperture), negation(conceptor(q, aperture))), expected)


def test_and_of_projectors_is_the_intersection():
    """Singular matrices: two planes of 4 dimensions in 6 meet in 2."""
    basis = torch.linalg.qr(states(9, 6))[0]
    a, b = projector(basis[:, :4]), projector(basis[:, 2:])
    torch.testing.assert_close(conjunction(a, b), projector(basis[:, 2:4]))
    torch.testing.assert_close(disjunction(projector(basis[:, :2]), projector(basis[:, 2:3])), projector(basis[:, :3]))
    nothing = conjunction(projector(basis[:, :2]), projector(basis[:, 3:]))
    torch.testing.assert_close(nothing, torch.zeros_like(nothing))


def test_and_of_singular_conceptors_is_the_limit_of_regular_ones():
    r, q = correlation(states(10, rank=4)), correlation(states(11, rank=5))
    a, b = conceptor(r, 1.0), conceptor(q, 1.0)
    nearly = [conceptor(m + 1e-7 * torch.eye(6, dtype=torch.float64), 1.0) for m in (r, q)]
    torch.testing.assert_close(conjunction(a, b), conjunction(*nearly), rtol=1e-3, atol=1e-4)


def test_weighted_correlation():
    x, w = states(12), torch.rand(40, dtype=torch.float64)
    expected = sum(wi * torch.outer(xi, xi) for wi, xi in zip(w, x)) / w.sum()
    torch.testing.assert_close(correlation(x, w), expected)
    assert correlation(x, torch.zeros(40, dtype=torch.float64)).abs().max() == 0


def activations(channels=10, grid=(4, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, channels, *grid, generator=generator).relu()
    return features, torch.randn(2, channels, *grid, generator=generator)


def test_unweighted_conceptors_of_both_sides_would_be_one_filter():
    """Why the states are weighted: C_inter A = A C_intra for plain correlations with matched apertures."""
    a = activations()[0][0].flatten(1).double()
    channels, places = a.shape
    inter = conceptor(a @ a.T / places, 1.0)
    intra = conceptor(a.T @ a / channels, (places / channels) ** -0.5)
    torch.testing.assert_close(inter @ a, a @ intra)


@pytest.mark.parametrize("channels", [10, 40])
def test_inter_and_intra_channel_filters_differ(channels):
    features, gradients = activations(channels)
    weight = gradients.mean((2, 3)).double()
    for image, w in zip(features.flatten(2).double(), weight):
        inter, intra = filters(image, w, features.shape[2:], 1.0)
        one, other = inter(image), image @ intra
        # Not even proportional, nor the same for another aperture on one side.
        assert torch.cosine_similarity(one.flatten(), other.flatten(), 0) < 0.99
        for aperture in (0.3, 0.5, 2.0, 4.0):
            other = image @ filters(image, w, features.shape[2:], aperture)[1]
            assert (one - other).norm() > 0.05 * one.norm()


def test_filters_in_the_span_of_the_states_equal_those_in_the_full_space():
    features, gradients = activations(channels=20)
    image, w = features[0].flatten(1).double(), gradients[0].mean((1, 2)).double()
    salience = min_max((w @ image).relu().view(1, 4, 3)).flatten()
    inter, _ = filters(image, w, torch.Size((4, 3)), 1.0)
    plus, minus = correlation(image.T, salience), correlation(image.T, 1 - salience)
    scale = (plus.trace() + minus.trace()) / 2 / torch.linalg.matrix_rank(image)
    full = conjunction(conceptor(plus / scale, 1.0), negation(conceptor(minus / scale, 1.0)))
    torch.testing.assert_close(inter(image), full @ image, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("channels", [6, 20])
def test_the_map_follows_its_six_steps(channels):
    """Fewer channels than places and more: the states span 6 or 12 dimensions; NOT and AND by plain inverses."""
    features, gradients = activations(channels)
    found = conceptor_cam(features, gradients, aperture=1.5, relu=False)
    for b in range(2):
        a, w = features[b].flatten(1).double(), gradients[b].mean((1, 2)).double()
        m = (w @ a).relu()
        m = (m - m.min()) / (m.max() - m.min())
        rank = torch.linalg.matrix_rank(a)

        def filtered(states, positive, negative, rank=rank):
            plus, minus = (
                sum(v * torch.outer(x, x) for v, x in zip(weights, states)) / weights.sum()
                for weights in (positive, negative)
            )
            scale = (plus.trace() + minus.trace()) / (2 * rank)
            identity = torch.eye(len(plus), dtype=torch.float64)
            # A little of every direction, so that the conjunction's closed form exists.
            plus, minus = plus / scale + 1e-9 * identity, minus / scale
            return torch.linalg.inv(identity + torch.linalg.inv(plus) / 1.5**2 + minus * 1.5**2)

        inter, intra = filtered(a.T, m, 1 - m), filtered(a, w.relu(), (-w).relu())
        torch.testing.assert_close(found[b].flatten().double(), w @ inter @ a @ intra, rtol=1e-4, atol=1e-6)


def test_the_map_does_not_depend_on_scale_but_on_evidence():
    features, gradients = activations()
    found = conceptor_cam(features, gradients)
    torch.testing.assert_close(conceptor_cam(100 * features, gradients) / 100, found, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, conceptor_cam(features, gradients, aperture=5.0))
    assert not torch.allclose(found, conceptor_cam(features, gradients, base="xgrad_cam"))
    assert found.shape == (2, 4, 3) and (found >= 0).all()
    assert conceptor_cam(features, torch.zeros_like(gradients)).abs().max() == 0


def test_unknown_choices_are_refused():
    with pytest.raises(UserError, match="base"):
        conceptor_cam(*activations(), base="score_cam")
    with pytest.raises(UserError, match="aperture"):
        conceptor_cam(*activations(), aperture=0)


def test_planes_at_a_small_angle_meet_in_a_line():
    angle = 1e-3
    normals = torch.tensor([[0.0, 0.0, 1.0], [0.0, -math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    planes = [torch.eye(3, dtype=torch.float64) - torch.outer(normal, normal) for normal in normals]
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[0, 0] = 1
    torch.testing.assert_close(conjunction(*planes), expected, rtol=0, atol=1e-6)
