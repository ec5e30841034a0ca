"""Measures that compare a map with a human map or an object, by hand and against NumPy and SciPy."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from common.errors import UserError
from common.models.transform import ModelTransform
from evaluate.maps.arithmetic import top_share
from evaluate.maps.boxes import box_mask, boxes_in_view, clip_boxes, largest_component_box, overlap
from evaluate.metrics.case import Case
from evaluate.metrics.localisation import box_accuracy_of
from evaluate.metrics.registry import MEASURES, measure_case


class First(nn.Module):
    """Always predicts class 0."""

    def forward(self, x):
        return torch.tensor([[1.0, 0.0]]).repeat(len(x), 1)


IMAGES = torch.zeros(1, 3, 20, 20)


def one(name, saliency, **given):
    case = Case(First(), torch.zeros(len(saliency), 3, *saliency.shape[1:]), saliency, **given)
    return next(iter(measure_case(case, [name]).values())).values.tolist()


def test_dice_and_iou_follow_harmonization():
    generator = np.random.default_rng(0)
    maps, human = generator.random((2, 20, 20)).astype(np.float32), generator.random((2, 20, 20)).astype(np.float32)
    human = human + maps
    expected = []
    for a, b in zip(maps, human):
        a, b = a > np.percentile(a, 90), b > np.percentile(b, 90)
        expected.append((2 * (a & b).sum() / (a.sum() + b.sum()), (a & b).sum() / (a | b).sum()))
    given = {"human": torch.tensor(human)}
    assert one("dice", torch.tensor(maps), **given) == pytest.approx([e[0] for e in expected])
    assert one("iou", torch.tensor(maps), **given) == pytest.approx([e[1] for e in expected])
    assert one("dice", torch.ones(1, 20, 20), human=torch.tensor(human[:1])) == [0]
    assert one("dice", torch.tensor(human), **given) == [1, 1]


def test_top_share_takes_numpys_percentile():
    values = torch.tensor(np.random.default_rng(1).random((3, 101)))
    for percent in (1, 10, 33.3):
        expected = values.numpy() > np.percentile(values.numpy(), 100 - percent, axis=1, keepdims=True)
        np.testing.assert_array_equal(top_share(values, percent).numpy(), expected)


def test_spearman_equals_scipy():
    generator = np.random.default_rng(0)
    maps, human = generator.random((2, 9, 9)), generator.integers(0, 5, (2, 9, 9)).astype(float)
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(maps, human)]
    found = one("spearman", torch.tensor(maps).float(), human=torch.tensor(human))
    assert found == pytest.approx(expected, abs=1e-6)
    assert np.isnan(one("spearman", torch.ones(1, 9, 9), human=torch.tensor(human[:1]))[0])
    signed = torch.tensor(maps).float() - 0.5  # the order of signed values, not of their magnitudes
    assert one("spearman", signed, human=torch.tensor(human)) == pytest.approx(expected, abs=1e-6)


def test_human_energy_by_hand():
    saliency = torch.zeros(1, 20, 20)
    saliency[0, 0, 0], saliency[0, 0, 1] = 1, 3
    human = torch.zeros(1, 20, 20)
    human[0, 0, 0], human[0, 0, 1], human[0, 5, 5] = 10, 5, 10
    expected = [(1 / 3 * 1 + 1 * 0.5) / (1 / 3 + 1)]
    assert one("human_energy", saliency, human=human) == pytest.approx(expected)
    assert one("human_energy", saliency - 5, human=human + 7) == pytest.approx(expected)
    assert np.isnan(one("human_energy", torch.ones(1, 20, 20), human=human)[0])
    assert one("human_energy", saliency, human=torch.ones(1, 20, 20)) == [0]


def test_small_maps_are_enlarged_bilinearly_between_pixel_centres():
    case = Case(First(), torch.zeros(1, 3, 4, 4), torch.tensor([[[0.0, 4.0], [8.0, 12.0]]]))
    line = np.array([0, 0.25, 0.75, 1])
    np.testing.assert_allclose(case.resized[0].numpy(), 4 * line[None] + 8 * line[:, None])
    np.testing.assert_allclose(case.saliency[0].numpy(), (line[None] + 2 * line[:, None]) / 3, rtol=1e-6)


def peak(row, column):
    saliency = torch.zeros(1, 20, 20)
    saliency[0, row, column] = 1
    return saliency


BOX = [torch.tensor([[4.0, 2.0, 8.0, 6.0]])]  # columns 4..7, rows 2..5


@pytest.mark.parametrize(
    ("place", "tolerance", "hit"),
    [
        ((2, 4), 0, 1),
        ((5, 7), 0, 1),
        ((6, 7), 0, 0),
        ((6, 7), 1, 0),  # nearer than the tolerance, not as near
        ((6, 7), 1.1, 1),
        ((8, 10), 4, 0),
        ((8, 10), 4.3, 1),
        ((19, 19), 15, 0),
    ],
)
def test_pointing_game_with_boxes_and_masks(place, tolerance, hit):
    assert one(f"pointing_game:tolerance={tolerance}", peak(*place), boxes=BOX) == [hit]
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[0, 2:6, 4:8] = True
    assert one(f"pointing_game:tolerance={tolerance}", peak(*place), masks=mask) == [hit]
    if tolerance == 0:
        assert one("standard_pointing", peak(*place), boxes=BOX) == [hit]


def test_pointing_in_an_oblong_image_at_the_highest_signed_value():
    saliency = torch.full((1, 6, 10), -3.0)
    saliency[0, 4, 7] = 1
    inside, beside = ([torch.tensor([[x, 4.0, x + 1, 5.0]])] for x in (7.0, 6.0))
    assert one("standard_pointing", saliency, boxes=inside) == [1]
    assert one("standard_pointing", saliency, boxes=beside) == [0]


def test_of_several_maxima_the_first_counts_in_the_pointing_game_and_any_in_opti_cams():
    saliency = torch.ones(1, 20, 20)
    saliency[0, 0, 0] = 0  # Fake-CAM
    assert one("pointing_game:tolerance=0", saliency, boxes=BOX) == [0]
    assert one("standard_pointing", saliency, boxes=BOX) == [1]
    saliency[0, 2:6, 4:8] = 0.9
    assert one("standard_pointing", saliency, boxes=BOX) == [0]


def test_energy_pointing_and_f1_by_hand():
    saliency = torch.zeros(1, 20, 20)
    saliency[0, 2, 4], saliency[0, 3, 5], saliency[0, 10, 10] = 2, 1, 1  # 3 of 4 inside, in units of 2
    assert one("energy_pointing", saliency, boxes=BOX) == [0.75]
    precision, recall = 0.75, 1.5 / 16
    assert one("pixel_f1", saliency, boxes=BOX) == pytest.approx([2 * precision * recall / (precision + recall)])
    double = [torch.tensor([[4.0, 2.0, 8.0, 6.0], [5.0, 2.0, 8.0, 6.0], [10.0, 10.0, 11.0, 11.0]])]
    assert one("energy_pointing", saliency, boxes=double) == [1]  # the union counts overlaps once
    assert one("pixel_f1", peak(19, 19), boxes=BOX) == [0]


def test_localisation_by_hand():
    """The map's mass is one block of 4 x 4 pixels shifted by 2 from the box: IoU 8 / 24."""
    saliency = torch.zeros(2, 20, 20)
    saliency[:, 2:6, 6:10] = 1
    saliency[:, 15, 15] = 1  # a smaller component
    given = {"boxes": BOX * 2, "targets": torch.tensor([0, 1]), "labels": torch.tensor([0, 1])}
    assert one("localisation_error", saliency, **given) == pytest.approx([1 - 1 / 3] * 2)
    assert one("official_metric", saliency, **given) == pytest.approx([1 - 1 / 3, 1])  # the second is predicted wrong
    assert one("box_accuracy:overlaps=(0.3,0.5),thresholds=10", saliency, **given) == [0.5, 0.5]
    given["labels"] = torch.tensor([1, 0])  # what was explained does not count, but what is true
    assert one("official_metric", saliency, **given) == pytest.approx([1, 1 - 1 / 3])
    del given["labels"]  # then the targets are taken for the truth
    assert one("official_metric", saliency, **given) == pytest.approx([1 - 1 / 3, 1])
    assert one("box_accuracy:overlaps=(0.3,),thresholds=1", saliency, **given) == [1, 1]  # {S > 0} is not the frame
    saliency[:, 12:] += 0.01  # above the median, not above the mean
    assert one("localisation_error", saliency, **given) == pytest.approx([1 - 1 / 3] * 2)
    two = [torch.cat([BOX[0], torch.tensor([[6.0, 2.0, 10.0, 6.0]])])] * 2
    assert one("localisation_error", saliency, **{**given, "boxes": two}) == pytest.approx([0, 0])


def test_box_accuracy_takes_one_threshold_for_the_data_set():
    hits = torch.zeros(2, 3, 2)
    hits[0, 0, 0] = hits[1, 0, 0] = 1  # delta 0: threshold 0 is right twice
    hits[0, 1, 1] = hits[1, 2, 1] = 1  # delta 1: another threshold for each image
    assert box_accuracy_of(hits) == pytest.approx((1 + 0.5) / 2)
    with_nan = torch.cat([hits, torch.full((1, 3, 2), torch.nan)])
    assert box_accuracy_of(with_nan) == pytest.approx(0.75)
    gradient = torch.arange(400.0).view(1, 20, 20)
    result = Case(First(), IMAGES, gradient, boxes=[torch.tensor([[0.0, 10.0, 20.0, 20.0]])])
    detail = measure_case(result, {"box_accuracy": {"thresholds": 4}})["box_accuracy"].detail[0]
    assert detail.shape == (4, 3) and detail[2].tolist() == [1, 1, 1] and detail[0].tolist() == [1, 1, 0]


def test_undefined_values_do_not_count_in_the_score_of_a_data_set():
    values = torch.tensor([1.0, torch.nan, 3.0])
    assert MEASURES["pointing_game"].aggregate(values) == 2
    assert MEASURES["pointing_game"].data_set_score(values, None, {}) == 2
    hits = torch.zeros(2, 3, 2)
    hits[:, 1, 0] = 1
    score = MEASURES["box_accuracy"].data_set_score(torch.zeros(2), hits.flatten(1), {"overlaps": (0.3, 0.5)})
    assert score == 0.5


def test_images_without_an_object_in_view_are_undefined():
    outside = [torch.tensor([[30.0, 30.0, 40.0, 40.0]])]
    for name in (
        "pointing_game",
        "energy_pointing",
        "localisation_error",
        "official_metric",
        "pixel_f1",
        "box_accuracy",
    ):
        assert np.isnan(one(name, peak(1, 1), boxes=outside)[0]), name


def test_constant_maps_do_not_break_anything():
    flat = torch.ones(1, 20, 20)
    assert one("localisation_error", flat, boxes=BOX) == [1]
    assert np.isnan(one("energy_pointing", flat, boxes=BOX)[0])
    assert np.isnan(one("saliency_metric", flat)[0])  # an empty box would be the best of all


def flooded_box(binary, neighbours):
    """Box of the largest component, filled pixel by pixel from each seed; of several, the first in reading order."""
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if abs(y) + abs(x) == 1 or (y and x and neighbours == 8)]
    left, best = set(zip(*map(np.ndarray.tolist, np.nonzero(binary)))), []
    for seed in sorted(left):
        found = [seed] if seed in left else []
        left.discard(seed)
        for row, column in found:  # grows while it is walked
            beside = {(row + y, column + x) for y, x in steps} & left
            left -= beside
            found += beside
        best = max(best, found, key=len)
    rows, columns = zip(*best)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


@pytest.mark.parametrize("threshold", [0.3, 0.55, 0.7, 0.95])
@pytest.mark.parametrize("neighbours", [4, 8])
def test_the_box_surrounds_the_largest_component_of_a_flood_fill(threshold, neighbours):
    for binary in np.random.default_rng(0).random((20, 30, 40)) > threshold:
        assert largest_component_box(binary, neighbours) == flooded_box(binary, neighbours)


def test_diagonal_neighbours_do_not_join_the_predicted_box_unless_asked_for():
    """Two blocks that touch at a corner, the first the larger: IoU 1 with it alone, 20 / 72 with the box of both."""
    saliency = torch.zeros(1, 20, 20)
    saliency[0, 2:7, 3:7] = saliency[0, 7:11, 7:11] = 1
    given = {"boxes": [torch.tensor([[3.0, 2.0, 7.0, 7.0]])], "targets": torch.tensor([0])}
    for name in ("localisation_error", "official_metric"):
        assert one(name, saliency, **given) == pytest.approx([0])
        assert one(f"{name}:neighbours=8", saliency, **given) == pytest.approx([1 - 20 / 72])
    both = {"boxes": [torch.tensor([[3.0, 2.0, 11.0, 11.0]])], "targets": torch.tensor([0])}
    assert one("box_accuracy:overlaps=(0.9,)", saliency, **both) == [1]  # contours go on over corners
    share = [one(name, saliency)[0] for name in ("saliency_metric:of=image", "saliency_metric:of=image,neighbours=8")]
    assert share[1] - share[0] == pytest.approx(np.log(72 / 20))
    with pytest.raises(UserError, match="neighbours 6; take 4 or 8"):
        one("localisation_error:neighbours=6", saliency, **given)


def test_boxes():
    assert largest_component_box(np.eye(5, dtype=bool), 8) == (0, 0, 5, 5)  # diagonal neighbours belong together
    assert largest_component_box(np.eye(5, dtype=bool), 4) == (0, 0, 1, 1)
    assert largest_component_box(np.zeros((5, 5), dtype=bool), 4) == (0, 0, 0, 0)
    box = torch.tensor([0.0, 0.0, 2.0, 2.0])
    assert overlap(box, torch.tensor([[1.0, 1, 3, 3], [5, 5, 6, 6], [0, 0, 2, 2]])).tolist() == pytest.approx(
        [1 / 7, 0, 1]
    )
    assert overlap(torch.zeros(4), torch.zeros(1, 4)).tolist() == [0]
    assert box_mask(torch.tensor([[0.4, 0.0, 1.6, 1.0]]), 2, 3)[0].tolist() == [[True, True, False], [False] * 3]
    assert box_mask(torch.tensor([[0.0, 0.6, 1.0, 1.4]]), 2, 1)[0].tolist() == [[False], [False]]
    assert clip_boxes(torch.tensor([[-2.0, 1, 3, 30], [25, 0, 30, 5]]), 20, 20).tolist() == [[0, 1, 3, 20]]
    assert clip_boxes(torch.tensor([[1.0, 1, 30, 30]]), 10, 20).tolist() == [[1, 1, 20, 10]]


def test_boxes_in_view():
    """A picture of 512 x 256, resized to 256 and cropped to 224: 16 px lost above, 144 at the left."""
    transform = ModelTransform(256, 224)
    found = boxes_in_view(torch.tensor([[144.0, 16.0, 368.0, 240.0]]), 512, 256, transform)
    assert found[0].tolist() == pytest.approx([0, 0, 224, 224])
    double = boxes_in_view(torch.tensor([[288.0, 32.0, 736.0, 480.0]]), 1024, 512, transform)
    assert double[0].tolist() == pytest.approx([0, 0, 224, 224])


@pytest.mark.parametrize("name", ["complexity", "pointing_game", "standard_pointing", "energy_pointing"])
def test_a_map_that_says_nothing_wins_nothing(name):
    saliency = torch.stack([torch.full((20, 20), 0.7), torch.arange(400.0).view(20, 20)])
    corners = [torch.tensor([[0.0, 0.0, 5.0, 5.0]]), torch.tensor([[15.0, 15.0, 20.0, 20.0]])]
    found = one(name, saliency, boxes=corners)
    assert np.isnan(found[0]) and found[1] > 0


def test_a_constant_map_of_fewer_pixels_than_the_image_has_is_constant():
    generator = torch.Generator().manual_seed(0)
    human, boxes = torch.rand(1, 64, 64, generator=generator), [torch.tensor([[5.0, 5.0, 30.0, 30.0]])]
    case = Case(First(), torch.zeros(1, 3, 64, 64), torch.full((1, 8, 8), 0.3), human=human, boxes=boxes)
    assert case.constant.all() and (case.saliency == 0).all()
    found = measure_case(case, ["spearman", "human_energy", "pointing_game", "energy_pointing", "complexity"])
    assert {name: bool(result.values.isnan().all()) for name, result in found.items()} == dict.fromkeys(found, True)
    found = measure_case(case, ["dice", "iou", "localisation_error"])
    assert [result.values.item() for result in found.values()] == [0, 0, 1]


def test_an_order_of_pixels_that_a_constant_map_does_not_give_is_not_measured():
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    maps[0] = 0.3
    case = Case(First(), torch.rand(2, 3, 32, 32), maps, transform=ModelTransform(32, 32))
    for name, result in measure_case(case, ["insertion", "deletion", "road"]).items():
        assert result.values.isnan().tolist() == [True, False], name


def test_under_another_explainer_a_map_is_constant_or_not_by_itself():
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    maps[0] = 0.3
    case = Case(First(), torch.rand(2, 3, 32, 32), maps)
    assert case.constant.tolist() == [True, False]
    assert case.under(maps.flip(0)).constant.tolist() == [False, True]
