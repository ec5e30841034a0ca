"""Measures that ask the model: hand-made cases, loops after the formulas, the published code's steps."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from scipy.integrate import trapezoid
from scipy.ndimage import gaussian_filter
from scipy.stats import pearsonr
from torch import nn

from common.errors import UserError
from common.models.transform import ModelTransform
from evaluate.explainers.explain import explain
from evaluate.metrics.case import Case
from evaluate.metrics.insertion_deletion import area, blur
from evaluate.metrics.registry import MEASURES, measure_case
from evaluate.metrics.road import impute
from evaluate.network.micro_batch import MicroBatch
from evaluate.network.query import Query

PLAIN = ModelTransform(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
NORMAL = ModelTransform(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
TRIO = ["average_drop", "average_increase", "average_gain"]


class Bright(nn.Module):
    """Two classes; the first one's logit is the sum of the first row of pixels minus that of the last row."""

    def forward(self, x):
        score = x[:, :, 0].sum((1, 2)) - x[:, :, -1].sum((1, 2))
        return torch.stack([score, torch.zeros_like(score)], 1)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return 5 * self.head(self.body(x))


@pytest.fixture
def images():
    return torch.rand(3, 3, 12, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def maps():
    return torch.rand(3, 12, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net():
    return Small().eval()


def probability(net, image, target):
    with torch.no_grad():
        return net(image[None]).softmax(1)[0, target].item()


def test_drop_increase_gain_by_hand():
    """Both rows cancel: p = 1/2. A map on the first row leaves it alone: the probability rises; one on the last
    row lets it fall."""
    images = torch.zeros(2, 3, 4, 4)
    images[:, :, 0] = images[:, :, -1] = 0.25
    maps = torch.zeros(2, 4, 4)
    maps[0, 0] = maps[1, -1] = 1
    case = Case(Bright(), images, maps, torch.tensor([0, 0]), transform=PLAIN)
    up = 1 / (1 + np.exp(-3))  # twelve values of 0.25
    found = {n: r.values.tolist() for n, r in measure_case(case, TRIO).items()}
    assert found["average_drop"] == pytest.approx([0, 100 * (0.5 - (1 - up)) / 0.5], abs=1e-4)
    assert found["average_increase"] == [100, 0]
    assert found["average_gain"] == pytest.approx([100 * (up - 0.5) / 0.5, 0], abs=1e-4)


def test_drop_increase_gain_follow_the_equations(net, images, maps):
    targets = torch.tensor([0, 3, 1])
    case = Case(net, images, maps, targets, transform=NORMAL)
    mean, std = torch.tensor(NORMAL.mean).view(3, 1, 1), torch.tensor(NORMAL.std).view(3, 1, 1)
    found = measure_case(case, TRIO)
    for i in range(3):
        s = (maps[i] - maps[i].min()) / (maps[i].max() - maps[i].min())
        p = probability(net, images[i], targets[i])
        o = probability(net, ((images[i] * std + mean) * s - mean) / std, targets[i])
        gain = 100 * max(o - p, 0) / (1 - p)
        assert found["average_drop"].values[i].item() == pytest.approx(100 * max(p - o, 0) / p, rel=1e-3, abs=1e-4)
        assert found["average_increase"].values[i].item() == 100 * (p < o)
        assert found["average_gain"].values[i].item() == pytest.approx(gain, rel=1e-3, abs=1e-4)
    assert found["average_drop"].settings == {"substrate": "black"}
    assert (found["average_drop"].better, found["average_gain"].better) == ("lower", "higher")


def test_drop_and_gain_at_certainty_and_for_constant_maps(images):
    class Sure(nn.Module):
        def forward(self, x):
            return torch.tensor([[500.0, 0.0]]).repeat(len(x), 1)

    case = Case(Sure(), images, torch.ones(3, 12, 10), torch.tensor([0, 1, 0]), transform=PLAIN)
    for result in measure_case(case, TRIO).values():
        assert result.values.tolist() == [0, 0, 0]


def test_fake_cam_shows_the_flaw_of_increase_and_not_of_gain(net):
    """It hides one pixel: hardly any drop, an increase for about half of the images, no gain to speak of."""
    images = torch.rand(40, 3, 12, 10, generator=torch.Generator().manual_seed(3))
    fake = explain(net, images, None, "fake_cam", transform=PLAIN)["fake_cam"]
    found = measure_case(Case(net, images, fake, transform=PLAIN), TRIO)
    scores = {name: MEASURES[name].aggregate(result.values) for name, result in found.items()}
    assert scores["average_drop"] < 1 and scores["average_gain"] < 1 and scores["average_increase"] > 20


def rise_curve(net, image, saliency, start, finish, step, target):
    """RISE's evaluation.py, for one image."""
    pixels = saliency.size
    order = np.flip(np.argsort(saliency.reshape(-1), kind="stable"))
    current = start.reshape(3, -1).clone()
    steps = (pixels + step - 1) // step
    scores = np.empty(steps + 1)
    for i in range(steps + 1):
        scores[i] = probability(net, current.reshape(image.shape), target)
        chosen = order[step * i : step * (i + 1)].copy()
        current[:, chosen] = finish.reshape(3, -1)[:, chosen]
    return scores, (scores.sum() - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1)


@pytest.mark.parametrize("step", [1, 7, 40])
@pytest.mark.parametrize("of", ["predicted", "target"])
def test_insertion_and_deletion_follow_rise(net, images, maps, step, of):
    targets = torch.tensor([0, 3, 1])
    case = Case(net, images, maps, targets)
    found = measure_case(case, [f"insertion:step={step},of={of}", f"deletion:step={step},of={of}"])
    inserted, deleted = found.values()
    with torch.no_grad():
        classes = net(images).argmax(1) if of == "predicted" else targets
    point = np.zeros((11, 11))
    point[5, 5] = 1
    kernel = torch.tensor(gaussian_filter(point, 5)).float()
    weight = torch.zeros(3, 3, 11, 11)
    for colour in range(3):
        weight[colour, colour] = kernel
    blurred = nn.functional.conv2d(images, weight, padding=5)
    torch.testing.assert_close(blur(images), blurred)
    for i in range(3):
        for result, start, finish in (
            (deleted, images[i], torch.zeros_like(images[i])),
            (inserted, blurred[i], images[i]),
        ):
            curve, score = rise_curve(net, images[i], maps[i].numpy(), start, finish, step, classes[i])
            np.testing.assert_allclose(result.detail[i].numpy(), curve, atol=1e-5)
            assert result.values[i].item() == pytest.approx(score, abs=1e-5)
    assert inserted.settings == {"step": step, "blur_size": 11, "blur_sigma": 5, "of": of}
    assert deleted.settings == {"step": step, "substrate": "mean", "of": of}


def test_what_insertion_and_deletion_put_in_the_place_of_pixels(net, images, maps):
    """The first state of an insertion is the blurred image, the last of a deletion the hidden one."""
    case = Case(net, images, maps, torch.tensor([0, 3, 1]), transform=NORMAL)
    names = ["insertion:of=target,blur_size=5,blur_sigma=1", "deletion:of=target,substrate=black"]
    inserted, deleted = (r.detail for r in measure_case(case, names).values())
    point = np.zeros((5, 5))
    point[2, 2] = 1
    kernel = torch.tensor(gaussian_filter(point, 1)).float()[None, None]
    blurred = nn.functional.conv2d(images.flatten(0, 1)[:, None], kernel, padding=2).view_as(images)
    black = -torch.tensor(NORMAL.mean) / torch.tensor(NORMAL.std)
    for i, target in enumerate([0, 3, 1]):
        assert inserted[i, 0].item() == pytest.approx(probability(net, blurred[i], target), rel=1e-4)
        hidden = black.view(3, 1, 1).expand(3, 12, 10)
        assert deleted[i, -1].item() == pytest.approx(probability(net, hidden, target), rel=1e-4)


def test_substrates_are_not_mixed_up_when_several_are_asked_for(net, images, maps):
    names = ["average_drop", "average_drop:substrate=mean"]
    together = measure_case(Case(net, images, maps, 1, transform=NORMAL), names)
    for name in names:
        alone = measure_case(Case(net, images, maps, 1, transform=NORMAL), [name])[name].values
        torch.testing.assert_close(together[name].values, alone)
    assert not torch.allclose(together[names[0]].values, together[names[1]].values)


def test_area():
    assert area(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).tolist() == [0.5, 1.0]
    curves = torch.rand(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(area(curves).numpy(), trapezoid(curves.numpy(), dx=1 / 6, axis=1))


def test_saliency_metric(net, images):
    maps = torch.zeros(3, 12, 10)
    maps[:, 2:8, 3:9] = 1
    case = Case(net, images, maps, torch.tensor([0, 3, 1]))
    found = measure_case(case, ["saliency_metric", "saliency_metric:of=image"])
    for i, target in enumerate([0, 3, 1]):
        crop = nn.functional.interpolate(images[i : i + 1, :, 2:8, 3:9], (12, 10), mode="bilinear")[0]
        expected = np.log(36 / 120) - np.log(probability(net, crop, target))
        assert found["saliency_metric"].values[i].item() == pytest.approx(expected, rel=1e-4)
        expected = np.log(36 / 120) - np.log(probability(net, images[i], target))
        assert found["saliency_metric:of=image"].values[i].item() == pytest.approx(expected, rel=1e-4)
    tiny = torch.zeros(3, 12, 10)
    tiny[:, 0, 0] = 1
    small = measure_case(Case(net, images, tiny, torch.tensor([0, 3, 1])), ["saliency_metric:of=image"])
    expected = np.log(0.05) - np.log(probability(net, images[0], 0))
    assert next(iter(small.values())).values[0].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_imputation_equals_that_of_the_grad_cam_package(images, share):
    keep = torch.rand(12, 10, generator=torch.Generator().manual_seed(2)) > share
    theirs = NoisyLinearImputer(noise=0)(images[0], keep.float())
    np.testing.assert_allclose(impute(images[0].numpy(), keep.numpy()), theirs.numpy(), atol=1e-5)


def test_road_rewards_the_map_that_the_class_depends_on():
    images = torch.zeros(1, 3, 8, 8)
    images[:, :, 0] = 0.2
    good, bad = torch.zeros(2, 1, 8, 8)
    good[:, 0], bad[:, 4] = 1, 1
    scores = [
        measure_case(
            Case(Bright(), images, m, torch.tensor([0]), transform=PLAIN), {"road": {"percentages": (13, 50)}}
        )["road"].values
        for m in (good, bad)
    ]
    assert scores[0] > 0.02 and scores[0] > scores[1] + 0.02
    with pytest.raises(UserError, match="percentages"):
        measure_case(Case(Bright(), images, good), {"road": {"percentages": (0,)}})


def test_road_follows_its_definition_with_the_packages_imputation(net, images, maps):
    targets, percentages = [0, 3, 1], (10, 25, 60)
    case = Case(net, images, maps, torch.tensor(targets), transform=NORMAL)
    found = measure_case(case, {"road": {"percentages": percentages, "noise": 0.0}})["road"].values
    for i, target in enumerate(targets):
        order, total = maps[i].flatten().argsort().numpy(), 0.0
        for percentage in percentages:
            removed = round(120 * percentage / 100)
            without = []
            for gone in (order[:removed], order[-removed:]):
                keep = torch.ones(120)
                keep[gone.copy()] = 0
                without.append(probability(net, NoisyLinearImputer(noise=0)(images[i], keep.view(12, 10)), target))
            total += (without[0] - without[1]) / 2
        assert found[i].item() == pytest.approx(total / 3, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("noise", [None, 0.0, 3.0])
def test_road_adds_noise_to_the_removed_pixels_before_normalisation(images, maps, noise):
    """As the authors' order is: pixels in 0..1 imputed, noise of that unit added, then normalised; 0.01 by default."""
    seen = []

    class Spy(Bright):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    mean, std = torch.tensor(NORMAL.mean).view(3, 1, 1), torch.tensor(NORMAL.std).view(3, 1, 1)
    case = Case(Spy(), (images - mean) / std, maps, 0, transform=NORMAL, image_keys=[4, 5, 6])
    measure_case(case, {"road": {"percentages": (30,)} | ({} if noise is None else {"noise": noise})})
    found = torch.cat(seen[1:])  # after the unmodified images
    for i, generator in enumerate(Query(Spy(), images, image_keys=[4, 5, 6]).generators()):
        drawn = (0.01 if noise is None else noise) * torch.randn(3, 12, 10, generator=generator)
        order = maps[i].flatten().argsort()
        for place, gone in enumerate((order[:36], order[-36:])):
            keep = torch.ones(120).scatter(0, gone, 0).view(12, 10)
            filled = torch.where(keep == 1, images[i], NoisyLinearImputer(noise=0)(images[i], keep) + drawn)
            torch.testing.assert_close(found[2 * i + place], (filled - mean) / std, rtol=1e-4, atol=1e-4)


def test_road_needs_the_unit_of_its_noise(net, images, maps):
    with pytest.raises(UserError, match="needs the model's mean and std"):
        measure_case(Case(net, images, maps), ["road"])


def test_max_sensitivity_and_coherency_by_hand(images):
    def linear(x):
        return x.sum(1)

    again = lambda _model, x: linear(x)  # noqa: E731
    case = Case(Bright(), images, linear(images), transform=PLAIN, explain=again, seed=3)
    found = measure_case(case, {"max_sensitivity": {"samples": 4, "radius": 0.1}, "coherency": {}})
    generators, worst = Query(Bright(), images, seed=3).generators(), torch.zeros(3)
    for _ in range(4):
        noise = 0.1 * (torch.stack([torch.rand(3, 12, 10, generator=g) for g in generators]) * 2 - 1)
        change = linear(noise).flatten(1).norm(dim=1) / linear(images).flatten(1).norm(dim=1)
        worst = worst.maximum(change)
    torch.testing.assert_close(found["max_sensitivity"].values, worst)
    for i in range(3):
        s = case.saliency[i]
        again = linear((images[i] * s)[None])[0]
        expected = (1 + np.corrcoef(s.flatten(), again.flatten())[0, 1]) / 2
        assert found["coherency"].values[i].item() == pytest.approx(expected, rel=1e-4)
    same = Case(Bright(), images, case.maps, transform=PLAIN, explain=lambda _model, _x: case.maps)
    torch.testing.assert_close(measure_case(same, ["coherency"])["coherency"].values, torch.ones(3))


def test_coherency_masks_the_normalised_image_as_adcc_does_and_black_is_an_option(images):
    """Against the steps of the authors' code: the tensor times the map, explained again, Pearson by SciPy."""
    again = lambda _model, x: (x**2).sum(1)  # noqa: E731
    case = Case(Bright(), images, again(None, images), transform=NORMAL, explain=again)
    found = measure_case(case, ["coherency", "coherency:substrate=black"])
    mean, std = torch.tensor(NORMAL.mean).view(3, 1, 1), torch.tensor(NORMAL.std).view(3, 1, 1)
    for i in range(3):
        s = case.saliency[i]
        masked = {"coherency": images[i] * s, "coherency:substrate=black": ((images[i] * std + mean) * s - mean) / std}
        for name, image in masked.items():
            second = again(None, image[None])[0]
            second = (second - second.min()) / (second.max() - second.min())
            expected = (1 + pearsonr(s.flatten(), second.flatten()).statistic) / 2
            assert found[name].values[i].item() == pytest.approx(expected, rel=1e-4)
    assert not torch.allclose(*(r.values for r in found.values()), atol=1e-2)


def test_max_sensitivity_of_a_map_of_zeros_is_undefined(images):
    for again in (torch.zeros(3, 12, 10), torch.ones(3, 12, 10)):
        case = Case(Bright(), images, torch.zeros(3, 12, 10), explain=lambda _model, _x, again=again: again)
        assert measure_case(case, ["max_sensitivity"])["max_sensitivity"].values.isnan().all()


def test_a_case_under_another_explainer_keeps_the_logits_and_nothing_of_the_maps(net, images, maps):
    """Rows are those of a case of its own; the unmodified images run once."""
    runs = []
    net.register_forward_pre_hook(lambda _module, args: runs.append(args[0].data_ptr() == images.data_ptr()))
    names, given = [*TRIO, "insertion:step=9", "coherency", "complexity"], {"transform": NORMAL, "bf16": True}
    first = Case(net, images, maps, 1, explain=lambda _model, x: x[:, 0], **given)
    measure_case(first, names)
    again = lambda _model, x: x[:, 1]  # noqa: E731
    second = first.under(1 - maps[:, :6, :6], again)
    found = measure_case(second, names)
    assert sum(runs) == 1
    expected = measure_case(Case(net, images, 1 - maps[:, :6, :6], 1, explain=again, **given), names)
    for name in names:
        assert torch.equal(found[name].detail, expected[name].detail), name
    assert not first.under(maps).can_explain and first.can_explain
    with pytest.raises(ValueError, match=r"maps of shape \(2"):
        first.under(maps[:2])


def test_complexity(images):
    maps = torch.zeros(3, 12, 10)
    maps[:, :6] = 4
    assert measure_case(Case(Bright(), images, maps), ["complexity"])["complexity"].values.tolist() == [0.5] * 3


def test_every_measure_says_what_it_is():
    for name, measure in MEASURES.items():
        assert measure.name == name and measure.summary and measure.better in ("higher", "lower")
    assert [n for n, m in MEASURES.items() if m.better == "lower"] == [
        "average_drop", "deletion", "official_metric", "localisation_error", "saliency_metric", "complexity",
        "max_sensitivity", "cascading_randomisation",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("average_drops", "did you mean"),
        ("zzz", "known: spearman"),
        ("insertion:stride=3", "no parameter 'stride'"),
        ("insertion:step=0", "whole number from 1 on"),
        ("insertion:blur_size=4", "odd"),
        ("deletion:of=other", "predicted or target"),
        ("saliency_metric:of=other", "crop or image"),
        ("dice", "needs human"),
        ("official_metric", "needs boxes"),
        ("energy_pointing", "needs objects"),
        ("coherency", "needs explain"),
    ],
)
def test_errors(net, images, maps, text, message):
    with pytest.raises(UserError, match=message):
        measure_case(Case(net, images, maps), [text])


def test_measures_follow_the_micro_batch_and_work_without_grad(net, images, maps):
    names = ["average_drop", "insertion:step=9", "deletion:step=9", "saliency_metric", "road:percentages=(30,60)"]
    small = Case(net, images, maps, transform=PLAIN, micro_batch=MicroBatch(2, torch.device("cpu")))
    whole = Case(net, images, maps, transform=PLAIN, micro_batch=MicroBatch(500, torch.device("cpu")))
    one, two = measure_case(small, names), measure_case(whole, names)
    for name in names:
        torch.testing.assert_close(one[name].values, two[name].values, rtol=1e-4, atol=1e-5)
        assert not one[name].values.requires_grad
