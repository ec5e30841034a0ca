"""Scores and comparisons from columns: which images count, the ceiling, bootstrap, Wilcoxon and Holm against SciPy."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from evaluate.rows import Comparison, table_schema
from evaluate.scores.comparisons import compare_pairs, group_seeds, protocol_effect, seed_family, verdict
from evaluate.scores.groups import Group, collect
from evaluate.scores.statistics import bootstrap_means, compare, holm, interval, score
from tests.evaluate.results import make_facts, make_score

NAN = float("nan")


def group(values, labels=None):
    spearman = np.array(values, float)
    count = len(values)
    return Group(
        index=np.arange(count),
        label=np.zeros(count, int) if labels is None else np.array(labels),
        correct=np.arange(count) % 2 == 0,
        alignment={
            "spearman": spearman,
            "degenerate": np.isnan(spearman),
            "dice": np.full(count, 0.5),
            "iou": np.full(count, 1 / 3),
            "centre_spearman": np.full(count, 0.25),
        },
    )


def test_paper_leaves_degenerate_maps_out_and_aligned_scores_them_zero():
    rows = group([0.5, NAN, 0.1, 0.3])
    paper, aligned = score(rows, "paper", None, 0), score(rows, "aligned", None, 0)
    assert paper.mean_spearman == pytest.approx(0.3) and paper.n_scored == 3
    assert aligned.mean_spearman == pytest.approx(0.225) and aligned.n_scored == 4
    assert paper.n_degenerate == aligned.n_degenerate == 1
    assert paper.n_images == 4 and paper.top1 == 50


def test_the_ceiling_divides_mean_interval_classes_and_centre_bias():
    rows = group(np.linspace(0.1, 0.6, 20))
    plain, divided = score(rows, "paper", None, 0), score(rows, "paper", 0.65753, 0)
    for name in ("alignment", "per_class_mean", "centre_bias"):
        assert getattr(divided, name) == pytest.approx(getattr(plain, name) / 0.65753)
    assert divided.mean_spearman == plain.mean_spearman
    np.testing.assert_allclose(np.array(divided.interval) * 0.65753, plain.interval)


def test_mean_over_classes_weighs_classes_equally():
    found = score(group([0.0, 0.0, 0.0, 0.8], labels=[1, 1, 1, 2]), "paper", None, 0)
    assert found.per_class_mean == pytest.approx(0.4) and found.mean_spearman == pytest.approx(0.2)


def test_without_human_maps_there_is_accuracy_only():
    found = score(group([NAN, NAN]), None, None, 0)
    assert found.top1 == 50 and found.alignment is None


def test_all_degenerate_gives_no_figure_not_nan():
    found = score(group([NAN, NAN]), "paper", None, 0)
    assert found.alignment is None and found.interval is None and found.n_scored == 0


def test_interval_agrees_with_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).normal(0.4, 0.2, 300)
    ours = interval(values, 1)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_bootstrap_is_seeded_and_independent_of_the_chunk(monkeypatch):
    import evaluate.scores.statistics as module

    values = np.random.default_rng(0).normal(size=50)
    first = bootstrap_means(values, 3, 500)
    monkeypatch.setattr(module, "_CHUNK_VALUES", 120)
    assert np.array_equal(first, bootstrap_means(values, 3, 500))
    assert not np.array_equal(first, bootstrap_means(values, 4, 500))


def test_one_value_has_no_interval():
    assert interval(np.array([0.3]), 0) is None


def test_collect_splits_a_table_and_orders_by_index():
    rows = [
        {"image_id": str(i), "index": i, "checkpoint": c, "explainer": "e", "protocol": "paper", "degenerate": i == 1,
         "spearman": None if i == 1 else i / 10, "centre_spearman": 0.1, "label": i, "predicted": 0, "correct": i == 0}
        for i in (2, 0, 1) for c in ("a", "b")
    ]  # fmt: skip
    tables = [pa.Table.from_pylist(part, table_schema()) for part in (rows[:3], rows[3:])]
    groups = collect(tables)
    assert list(groups) == [("a", "e", "paper"), ("b", "e", "paper")]
    found = groups["b", "e", "paper"]
    assert found.index.tolist() == [0, 1, 2] and found.label.tolist() == [0, 1, 2]
    assert found.spearman[0] == 0 and np.isnan(found.spearman[1]) and found.degenerate.tolist() == [False, True, False]


def test_comparison_is_paired_and_equals_scipy():
    generator = np.random.default_rng(0)
    first = generator.uniform(-0.2, 0.6, 80)
    second = first + generator.normal(0.03, 0.05, 80)
    first[3] = NAN
    found = compare(group(first), group(second), "paper", 0.5, 0)
    gain = np.delete(second - first, 3)
    assert found.difference == pytest.approx(gain.mean() / 0.5) and found.n_pairs == 79
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(gain).pvalue)
    assert found.improved == pytest.approx((gain > 0).mean())
    assert found.interval[0] < found.difference < found.interval[1]
    aligned = compare(group(first), group(second), "aligned", None, 0)
    assert aligned.n_pairs == 80


def test_comparison_pairs_by_image_not_by_place():
    a, b = group([0.1, 0.2, 0.3]), group([0.9, 0.2, 0.3])
    b.index = np.array([7, 1, 2])
    assert compare(a, b, "paper", None, 0).difference == 0
    assert compare(a, b, "paper", None, 0).wilcoxon_p is None


def test_holm_equals_a_hand_made_case():
    assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_pairs_are_corrected_within_one_explainer_and_protocol():
    generator = np.random.default_rng(1)
    base = generator.uniform(0, 1, 40)
    groups = {
        (name, "e", "paper"): group(base + shift + generator.normal(0, 0.02, 40))
        for name, shift in (("a", 0.0), ("a2", 0.0), ("b", 0.05), ("b2", 0.001))
    }
    found = compare_pairs(groups, [("a", "b"), ("a2", "b2"), ("a", "absent")], None, 0)
    assert [(f.first, f.second) for f in found] == [("a", "b"), ("a2", "b2")]
    assert [f.holm_p for f in found] == holm([f.wilcoxon_p for f in found])
    assert verdict(found[0]) == "higher" and verdict(found[1]) == "no clear difference"


def test_a_gain_smaller_than_the_spread_between_seeds_is_called_so():
    assert seed_family("demo_dcls_seed3") == seed_family("demo_dcls-s12") == seed_family("demo_dcls") == "demo_dcls"
    assert seed_family("caformer_s18") == "caformer_s18"  # a size, not a seed
    scores = [make_score(f"m_seed{i}", "e", "m", alignment=value) for i, value in enumerate((0.2, 0.3, 0.4))]
    seeds = group_seeds(scores)
    assert seeds[0].n_seeds == 3 and seeds[0].spread == pytest.approx(0.1)
    other = [replace(item, facts=make_facts(model=f"model {i}")) for i, item in enumerate(scores)]
    assert group_seeds(other) == []  # alike in name only
    item = Comparison(first="m_seed0", second="n", explainer="e", protocol="paper", holm_p=1e-6, difference=0.05,
                      interval=[0.04, 0.06], wilcoxon_p=1e-6, improved=1.0, n_pairs=40)  # fmt: skip
    assert verdict(item, seeds) == "within the spread between seeds"
    assert verdict(replace(item, difference=0.2, interval=[0.1, 0.3]), seeds) == "higher"


def test_protocol_effect():
    scores = [make_score("a", "e", protocol=p, alignment=v) for p, v in (("paper", 0.4), ("aligned", 0.3))]
    (found,) = protocol_effect(scores)
    assert found.change == pytest.approx(-0.1)


def test_box_accuracy_of_a_data_set_follows_the_settings_it_was_made_with():
    import torch

    from evaluate.metrics.registry import MEASURES

    hits = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])  # (N, eta, delta) with two deltas
    measure = MEASURES["box_accuracy"]
    found = measure.data_set_score(torch.zeros(2), hits.flatten(1), {"overlaps": (0.3, 0.5)})
    assert found == pytest.approx((1.0 + 0.5) / 2)  # best eta for each delta, then the mean
