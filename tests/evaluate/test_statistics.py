"""Scores from rows: which images count, the ceiling, the bootstrap against SciPy's."""

import numpy as np
import pytest
from scipy import stats

from evaluate.statistics import bootstrap_means, interval, score


def rows(values, protocol="paper"):
    return [
        {"protocol": protocol, "spearman": v, "degenerate": v is None, "correct": i % 2 == 0}
        for i, v in enumerate(values)
    ]


def test_paper_leaves_degenerate_maps_out_and_aligned_scores_them_zero():
    values = [0.5, None, 0.1, 0.3]
    paper, aligned = score(rows(values), None, 0), score(rows(values, "aligned"), None, 0)
    assert paper["mean_spearman"] == pytest.approx(0.3) and paper["n_scored"] == 3
    assert aligned["mean_spearman"] == pytest.approx(0.225) and aligned["n_scored"] == 4
    assert paper["n_degenerate"] == aligned["n_degenerate"] == 1
    assert paper["n_images"] == 4 and paper["top1"] == 50


def test_the_ceiling_divides_mean_and_interval():
    values = list(np.linspace(0.1, 0.6, 20))
    plain, divided = score(rows(values), None, 0), score(rows(values), 0.65753, 0)
    assert divided["alignment"] == pytest.approx(plain["mean_spearman"] / 0.65753)
    assert divided["mean_spearman"] == plain["mean_spearman"]
    np.testing.assert_allclose(np.array(divided["interval"]) * 0.65753, plain["interval"])


def test_without_human_maps_there_is_accuracy_only():
    found = score([{"correct": True}, {"correct": False}, {"correct": True}], None, 0)
    assert found["top1"] == pytest.approx(200 / 3) and found["alignment"] is None


def test_all_degenerate_gives_no_figure_not_nan():
    found = score(rows([None, None]), None, 0)
    assert found["alignment"] is None and found["interval"] is None and found["n_scored"] == 0


def test_interval_agrees_with_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).normal(0.4, 0.2, 300)
    ours = interval(values, 1)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_bootstrap_is_seeded_and_independent_of_the_chunk():
    values = np.random.default_rng(0).normal(size=50)
    first = bootstrap_means(values, 3, 500)
    assert np.array_equal(first, bootstrap_means(values, 3, 500, chunk_values=120))
    assert not np.array_equal(first, bootstrap_means(values, 4, 500))


def test_one_value_has_no_interval():
    assert interval(np.array([0.3]), 0) is None
