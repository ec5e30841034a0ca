"""Rank correlation against SciPy, row by row."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from evaluate.maps.ranks import average_ranks, spearman, spearman_from_ranks


def scipy_spearman(a: np.ndarray, b: np.ndarray) -> list[float]:
    with np.errstate(all="ignore"):
        return [float(stats.spearmanr(x, y).statistic) for x, y in zip(a, b, strict=True)]


def assert_equal_to_scipy(a: np.ndarray, b: np.ndarray) -> None:
    ours = spearman(torch.from_numpy(a), torch.from_numpy(b))
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(ours.numpy(), scipy_spearman(a, b), atol=1e-9, rtol=0)


SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=40)
FLOATS = st.floats(width=32, allow_nan=False)


@given(data=st.data(), shape=SHAPES, ties=st.booleans())
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_spearman_equals_scipy(data: st.DataObject, shape: tuple[int, int], ties: bool) -> None:
    elements = st.integers(-2, 2).map(float) if ties else FLOATS
    a, b = (data.draw(hnp.arrays(np.float32, shape, elements=elements)) for _ in range(2))
    assert_equal_to_scipy(a, b)


@given(hnp.arrays(np.float32, SHAPES, elements=st.sampled_from([0.0, -0.0, 1.0, 2.0]) | FLOATS))
@settings(deadline=None)
def test_average_ranks_equal_scipy(x: np.ndarray) -> None:
    ranks = average_ranks(torch.from_numpy(x))
    assert ranks.dtype == torch.float64
    np.testing.assert_array_equal(ranks.numpy(), stats.rankdata(x, axis=1))


def test_maps_of_full_size_with_a_plateau() -> None:
    rng = np.random.default_rng(0)
    low = rng.random((4, 1, 7, 7), dtype=np.float32)
    maps = torch.nn.functional.interpolate(torch.from_numpy(low).clamp(min=0.3), (224, 224), mode="bilinear")
    human = rng.integers(0, 20, (4, 224 * 224)).astype(np.float32)
    assert_equal_to_scipy(maps.flatten(1).numpy(), human)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_other_dtypes_are_ranked(dtype: torch.dtype) -> None:
    x = torch.randint(0, 5, (3, 50), generator=torch.Generator().manual_seed(0)).to(dtype)
    np.testing.assert_array_equal(average_ranks(x).numpy(), stats.rankdata(x.double().numpy(), axis=1))


def test_integers_beyond_float_precision_stay_apart() -> None:
    x = torch.tensor([[2**60 + 1, 2**60, 2**60 + 2]])
    assert average_ranks(x).tolist() == [[2.0, 1.0, 3.0]]


def test_constant_rows_and_rows_with_nan_are_nan_and_leave_others_alone() -> None:
    a = torch.tensor([[1.0, 2, 3, 4], [7, 7, 7, 7], [1, -math.nan, 3, 4], [math.nan] * 4, [1, 2, 3, 4]])
    b = torch.tensor([[1.0, 2, 3, 4]]).repeat(5, 1)
    for first, second in ((a, b), (b, a)):
        result = spearman(first, second)
        assert result.isnan().tolist() == [False, True, True, True, False]
        assert result[[0, 4]].tolist() == pytest.approx([1.0, 1.0])
    ranks = average_ranks(a)
    assert ranks.isnan().all(dim=1).tolist() == [False, False, True, True, False]
    assert ranks[1].tolist() == [2.5] * 4


def test_infinities_are_ranked_and_tie() -> None:
    x = torch.tensor([[math.inf, 0, -math.inf, math.inf]])
    assert average_ranks(x).tolist() == [[3.5, 2.0, 1.0, 3.5]]


def test_human_ranks_can_be_reused() -> None:
    generator = torch.Generator().manual_seed(1)
    human, *maps = torch.randint(0, 9, (3, 5, 100), generator=generator)
    human_ranks = average_ranks(human)
    for explained in maps:
        again = spearman_from_ranks(average_ranks(explained), human_ranks)
        assert torch.equal(again, spearman(explained, human))


def test_the_result_never_leaves_its_range() -> None:
    generator = torch.Generator().manual_seed(2)
    for length in range(2, 60):
        x = torch.randint(0, 6, (20, length), generator=generator)
        for result, sign in ((spearman(x, x), 1.0), (spearman(x, -x), -1.0)):
            defined = result[~result.isnan()]
            assert defined.abs().le(1.0).all()
            torch.testing.assert_close(defined, torch.full_like(defined, sign))


def test_inputs_stay_unchanged_and_gradients_are_not_tracked() -> None:
    x = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
    assert not spearman(x, x).requires_grad
    assert x.tolist() == [[3.0, 1.0, 2.0]]


def test_views_are_ranked_as_their_copies() -> None:
    x = torch.randint(0, 9, (40, 6), generator=torch.Generator().manual_seed(3)).T
    assert torch.equal(average_ranks(x), average_ranks(x.contiguous()))
    assert torch.equal(average_ranks(x[:1].expand(3, -1))[2], average_ranks(x)[0])


def test_an_empty_batch_is_allowed_and_wrong_shapes_are_not() -> None:
    assert spearman(torch.zeros(0, 9), torch.zeros(0, 9)).shape == (0,)
    with pytest.raises(ValueError, match=r"\(B, N\).*\(5,\)"):
        average_ranks(torch.zeros(5))
    with pytest.raises(ValueError, match=r"\(2, 5\) and \(1, 5\)"):
        spearman(torch.zeros(2, 5), torch.zeros(1, 5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_agrees_with_the_cpu() -> None:
    generator = torch.Generator().manual_seed(4)
    a, b = torch.rand(2, 16, 224 * 224, generator=generator).mul(1000).round()
    result = spearman(a.cuda(), b.cuda())
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), spearman(a, b), atol=1e-12, rtol=0)


def test_rows_that_are_not_contiguous_are_ranked() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(average_ranks(x.t()).numpy(), stats.rankdata(x.t().numpy(), axis=1))
