"""Opti-CAM against the optimisation written out for one image, and each equation of its objectives."""

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from common.models.transform import ModelTransform
from evaluate.explainers.explain import explain
from evaluate.maps.arithmetic import min_max
from evaluate.network.query import Query

TRANSFORM = ModelTransform(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
MEAN, STD = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (TRANSFORM.mean, TRANSFORM.std))


def masked_logit(net, image, mask, target):
    pixels = image * STD + MEAN
    return net(((pixels * mask - MEAN) / STD)[None])[0, target]


def written_out(net, image, target, objective="mask", normalisation="range", iterations=10, rate=0.1):
    """One image, Adam step by step."""
    with torch.no_grad():
        features = net.forward_features(image[None])[0].relu()
        whole = net(image[None])[0, target]
    u = torch.full((len(features),), 0.5, dtype=torch.float64, requires_grad=True)
    first, second = torch.zeros_like(u), torch.zeros_like(u)
    for t in range(1, iterations + 1):
        s = (u.softmax(0)[:, None, None] * features).sum(0)
        s = F.interpolate(s[None, None], image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
        s = {"range": lambda s: (s - s.min()) / (s.max() - s.min()), "max": lambda s: s / s.max(),
             "sigmoid": lambda s: 0.5 * (torch.tanh(s / 2) + 1)}[normalisation](s)  # fmt: skip
        inside, outside = masked_logit(net, image, s, target), masked_logit(net, image, 1 - s, target)
        f = {
            "mask": inside,
            "diff": -(whole - inside).abs(),
            "io_mask": inside - outside,
            "io_diff": -(whole - inside).abs() + (whole - outside).abs(),
        }[objective]
        (g,) = torch.autograd.grad(-f, u)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        with torch.no_grad():
            u -= rate * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    return (u.detach().softmax(0)[:, None, None] * features).sum(0)


@pytest.mark.parametrize("objective", ["mask", "diff", "io_mask", "io_diff"])
@pytest.mark.parametrize("normalisation", ["range", "max", "sigmoid"])
def test_a_batch_equals_the_optimisation_written_out_image_by_image(pooled_net, images, objective, normalisation):
    pooled_net, images = pooled_net.double(), images.double()  # Adam turns rounding of tiny gradients into steps
    given = {"objective": objective, "normalisation": normalisation, "iterations": 10}
    found = explain(pooled_net, images, [0, 1, 4], {"opti_cam": given}, transform=TRANSFORM, size="own")["opti_cam"]
    for image, target, one in zip(images, [0, 1, 4], found):
        expected = written_out(pooled_net, image, target, objective, normalisation)
        torch.testing.assert_close(one, expected.float(), rtol=1e-4, atol=1e-5)


def test_it_raises_the_score_of_the_masked_image(pooled_net, images):
    query = Query(pooled_net, images, [0, 1, 4], transform=TRANSFORM)
    uniform = query.features.relu().mean(1)
    found = explain(pooled_net, images, [0, 1, 4], "opti_cam", transform=TRANSFORM, size="own")["opti_cam"]
    scores = [
        query.targets.scores(query.forward(query.mask(images, min_max(query.upsample(m)), "black")))
        for m in (uniform, found)
    ]
    assert (scores[1] > scores[0]).all()


def test_images_stop_one_by_one_and_finished_ones_are_not_computed_again(pooled_net, images, monkeypatch):
    """With all channels alike F cannot change; that image stops after its second iteration, the others go on."""
    features = Query(pooled_net, images, 1).features
    features[1] = features[1, :1]
    original, sizes = Query.forward, []
    monkeypatch.setattr(Query, "forward", lambda self, x: sizes.append(len(x)) or original(self, x))
    monkeypatch.setattr(Query, "features", property(lambda self: features))
    given = {"transform": TRANSFORM, "size": "own", "micro_batch": 100}
    found = explain(pooled_net, images, 1, {"opti_cam": {"iterations": 6}}, **given)["opti_cam"]
    assert sizes == [3, 3, 2, 2, 2, 2]
    torch.testing.assert_close(found[1], features[1, 0])
    assert not torch.allclose(found[0], features[0].mean(0))
    features[:], sizes[:] = features[:, :1].clone(), []
    explain(pooled_net, images, 1, {"opti_cam": {"iterations": 6}}, **given)
    assert sizes == [3, 3]


@pytest.mark.parametrize("micro_batch", [4, 100])
def test_an_image_that_stops_early_gives_the_map_it_gives_alone(pooled_net, images, micro_batch):
    """Also while the others go on, whether they share its slice or not."""
    pooled_net, images = pooled_net.double(), images.double()
    given = {"transform": TRANSFORM, "size": "own", "micro_batch": micro_batch}
    methods, steps, counts = {"opti_cam": {"tolerance": 1e-3, "iterations": 200}}, [], {}
    for image, target in zip(images, [0, 1, 4]):
        steps.append(explain(pooled_net, image[None], target, methods, **given)["opti_cam"][0])
        counts[len(written_values(pooled_net, image, target, 1e-3, 200))] = True
    assert len(counts) == 3 and max(counts) < 200  # they do stop, each at its own time
    torch.testing.assert_close(explain(pooled_net, images, [0, 1, 4], methods, **given)["opti_cam"], torch.stack(steps))


def test_an_image_stops_when_its_value_changes_by_less_than_the_tolerance(pooled_net, images):
    pooled_net, images = pooled_net.double(), images.double()
    given = {"transform": TRANSFORM, "size": "own"}
    for image, target in zip(images, [0, 1, 4]):
        count = len(written_values(pooled_net, image, target, 1e-3, 200))
        found = explain(pooled_net, image[None], target, {"opti_cam": {"tolerance": 1e-3, "iterations": 200}}, **given)
        expected = written_out(pooled_net, image, target, iterations=count)
        torch.testing.assert_close(found["opti_cam"][0], expected.float(), rtol=1e-4, atol=1e-5)


def written_values(net, image, target, tolerance, iterations):
    """F before each step, until two in a row differ by less than the tolerance."""
    values = []
    for count in range(iterations):
        s = written_out(net, image, target, iterations=count)
        s = F.interpolate(s[None, None], image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
        with torch.no_grad():
            values.append(masked_logit(net, image, (s - s.min()) / (s.max() - s.min()), target).item())
        if count and abs(values[-1] - values[-2]) < tolerance:
            break
    return values


def test_negative_activations_are_dropped_before_they_are_combined(pooled_net, images):
    """The layer before the last ReLU gives the map of that ReLU."""
    given = {"transform": TRANSFORM, "size": "own"}
    assert Query(pooled_net, images, 1, "norm").features.min() < 0
    methods = {"opti_cam": {"iterations": 5}}
    signed, positive = (
        explain(pooled_net.double(), images.double(), 1, methods, layer=layer, **given)["opti_cam"]
        for layer in ("norm", "act")
    )
    torch.testing.assert_close(signed, positive)


def test_black_and_mean_are_different_methods(pooled_net, images):
    methods = ["opti_cam:iterations=5", "opti_cam:iterations=5,substrate=mean"]
    maps = explain(pooled_net, images, 1, methods, transform=TRANSFORM)
    assert not torch.allclose(maps[methods[0]], maps[methods[1]])


@pytest.mark.parametrize("text", ["objective=best", "normalisation=z", "iterations=0"])
def test_unknown_choices_are_refused(pooled_net, images, text):
    with pytest.raises(UserError, match="opti_cam"):
        explain(pooled_net, images, 1, f"opti_cam:{text}", transform=TRANSFORM)
