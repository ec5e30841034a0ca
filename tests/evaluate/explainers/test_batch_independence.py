"""What is drawn at random for an image depends on the seed and the image, not on the batch it lies in."""

import pytest
import torch

from evaluate.data.scenes import ScenesData
from evaluate.explainers.explain import explain
from evaluate.explainers.registry import EXPLAINERS
from evaluate.metrics.registry import MEASURES
from evaluate.network.query import Query
from evaluate.network.subject import load_subject
from evaluate.run.measure import measure
from evaluate.run.options import RunOptions

EXPLAINED = ("random", "smooth_grad:samples=2", "rise:masks=6", "grad_cam", "other_human")
CASCADE = "cascading_randomisation:stages=('head','stages.7')"
MEASURED = ("max_sensitivity:samples=2", "coherency", "road:percentages=(20,60),noise=9", CASCADE)


def rows_by_image(subject, data, batch_size, indices=range(8)):
    options = RunOptions(
        EXPLAINERS.choose(EXPLAINED), measures=MEASURES.choose(MEASURED), workers=0, batch_size=batch_size
    )
    rows = [row for batch in measure(subject, data, indices, options) for row in batch.rows]
    return {(row["index"], row["explainer"]): row for row in rows}


def test_rows_of_random_methods_and_measures_do_not_depend_on_the_batch(checkpoint):
    data, subject = ScenesData(64, 8), load_subject(str(checkpoint))
    whole = rows_by_image(subject, data, 8)
    assert len({row["spearman"] for (_, e), row in whole.items() if e == "random"}) == 8
    for found in (
        rows_by_image(subject, data, 1),
        rows_by_image(subject, data, 3),
        rows_by_image(subject, data, 8, (6, 1)),
    ):
        for key, row in found.items():
            expected = {name: pytest.approx(whole[key][name], rel=1e-3, abs=1e-4) for name in ("spearman", *MEASURED)}
            assert {name: row[name] for name in expected} == expected, key


def test_maps_of_an_image_are_those_of_the_image_alone(pooled_net, images):
    """Also where no keys are given; with other keys, or another seed, the draws are others."""
    names = {"random": {}, "smooth_grad": {"samples": 2}}
    whole = explain(pooled_net, images, 1, names)
    keyed = explain(pooled_net, images, 1, names, image_keys=[4, 5, 6])
    for name in names:
        for n in range(3):
            one = explain(pooled_net, images[n : n + 1], 1, names)[name][0]
            torch.testing.assert_close(one, whole[name][n])
            again = explain(pooled_net, images[[n, n]], 1, names, image_keys=[n + 4, 9])[name]
            torch.testing.assert_close(again[0], keyed[name][n])
            assert not torch.allclose(again[0], again[1]) and not torch.allclose(one, again[0])
    with pytest.raises(ValueError, match="2 image keys for 3 images"):
        explain(pooled_net, images, 1, "random", image_keys=[1, 2])


def test_draws_are_independent_between_images_and_seeds(images):
    drawn = [
        torch.rand(500, generator=g)
        for seed in (0, 1)
        for g in Query(torch.nn.Identity(), images, seed=seed).generators()
    ]
    correlations = torch.corrcoef(torch.stack(drawn)) - torch.eye(6)
    assert correlations.abs().max() < 0.2
