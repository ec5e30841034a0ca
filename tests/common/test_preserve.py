"""A plain network becomes a DCLS network of its function: exactly, or as nearly as fewer elements can."""

import copy
import itertools

import numpy as np
import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

from common.constraints import constrain
from common.dcls import INTERPOLATIONS, DclsConv2d, row_axis
from common.dcls_spec import DclsSpec
from common.preserve import preserve
from common.surgery import fold_dcls, position_groups, replace_convs

KINDS = {
    "depthwise 7x7": (nn.Conv2d, 6, 6, 7, {"padding": 3, "groups": 6}),
    "dense 3x3, strided, no bias": (nn.Conv2d, 4, 6, 3, {"padding": 1, "stride": 2, "bias": False}),
    "grouped": (nn.Conv2d, 4, 6, 3, {"groups": 2}),
    "even": (nn.Conv2d, 3, 4, 4, {"stride": 4}),
    "1x1": (nn.Conv2d, 3, 4, 1, {}),
    "not square": (nn.Conv2d, 4, 4, (1, 5), {"padding": (0, 2), "groups": 4}),
    "dilated": (nn.Conv2d, 4, 4, 3, {"padding": 2, "dilation": 2, "groups": 4}),
    "dilated by rows": (nn.Conv2d, 4, 4, 3, {"padding": (3, 1), "dilation": (3, 1), "groups": 4}),
    "as large as the plane": (nn.Conv2d, 2, 2, 9, {"padding": 4}),
    "reflect": (nn.Conv2d, 4, 4, 3, {"padding": 1, "padding_mode": "reflect"}),
    "SAME, strided": (Conv2dSame, 4, 4, 3, {"stride": 2, "groups": 4}),
    "SAME, strided, even": (Conv2dSame, 4, 4, (4, 2), {"stride": (1, 2)}),
}
CLOSE = {"v0": 1e-6, "v1": 1e-5, "max": 2e-6, "gauss": 4e-3}
"""||difference|| / ||output||: rounding, the hair beside whole positions, the skirts of a bump 0.27 px wide."""


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def preserved(conv: nn.Conv2d, interpolation: str, count: int, size: int = 9) -> tuple[DclsConv2d, float]:
    """The layer that a convolution becomes, and the error that is reported."""
    model = nn.Sequential(copy.deepcopy(conv))
    errors = replace_convs(model, DclsSpec(interpolation, size, count, ["0"], init="preserve")).errors
    return model[0], errors["0"]


def dense(conv: nn.Conv2d, size: int) -> torch.Tensor:
    """The convolution's kernel in the plane, tap by tap."""
    plane = torch.zeros(*conv.weight.shape[:2], size, size)
    reach = [d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation)]
    for row, column in itertools.product(*map(range, conv.kernel_size)):
        y = size // 2 - reach[0] // 2 + conv.dilation[0] * row
        x = size // 2 - reach[1] // 2 + conv.dilation[1] * column
        plane[..., y, x] = conv.weight.detach()[..., row, column]
    return plane


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [9, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_as_many_elements_as_taps_compute_the_same(kind, size, interpolation):
    torch.manual_seed(0)
    make, cin, cout, kernel_size, options = KINDS[kind]
    conv = make(cin, cout, kernel_size, **options)
    layer, error = preserved(conv, interpolation, conv.weight[0, 0].numel(), size)
    for shape in ((14, 15), (17, 12)):
        x = torch.randn(2, cin, *shape)
        assert distance(layer(x), conv(x)) <= CLOSE[interpolation]
        assert distance(layer.fold()(x), conv(x)) <= CLOSE[interpolation]
    assert error <= CLOSE[interpolation]
    assert error == pytest.approx(distance(layer.kernel(), dense(conv, size)), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size,kernel_size", [(9, 9), (17, 7), (31, 3), (10, 10)])
def test_every_element_can_move_and_clamping_leaves_it(size, kernel_size, interpolation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 2, kernel_size, padding=kernel_size // 2, groups=2))
    replace_convs(model, DclsSpec(interpolation, size, kernel_size**2, init="preserve"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    constrain(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    optimizer = torch.optim.SGD(model.parameters(), 10)
    (model(torch.randn(2, 2, 40, 40)) * torch.randn(2, 2, 1, 1)).square().mean().backward()
    for name in [n for n in before if n.endswith(("P", "SIG"))]:
        gradient = model.get_parameter(name).grad
        assert gradient.abs().min() > 0, name
        if name.endswith("P") and interpolation in ("v0", "v1", "max"):  # as steep as anywhere
            assert gradient.abs().median() > 1e-4 * model[0].weight.grad.abs().median(), name
    optimizer.step()
    assert (before["0.P"] != model[0].P).float().mean() > 0.99  # a tiny step may be less than a rounding error


def test_the_whole_real_network_gives_the_same_logits(shared_data):
    """Every depthwise layer of a MobileNetV2, the strided ones padded as in TensorFlow."""
    torch.manual_seed(0)
    plain = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    plain.load_state_dict(torch.load(shared_data / "weights" / "mobilenetv2_100_same.pth", weights_only=True))
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = plain(x)
        for interpolation in ("v0", "v1", "max"):
            model = copy.deepcopy(plain)
            replaced = replace_convs(model, DclsSpec(interpolation, 9, 9, init="preserve"))
            assert len(replaced) == 17 == len(replaced.errors)
            assert max(replaced.errors.values()) < 1e-5 and "17 convolutions" in replaced.summary
            assert sum(layer.stride == (2, 2) for group in position_groups(model) for _, layer in group.layers) == 4
            assert distance(model(x), expected) < 1e-5
            assert distance(fold_dcls(model)(x), expected) < 1e-5


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_layers_of_a_stage_share_the_taps(interpolation):
    """Also kernels of different size: each has elements of weight zero where it has no taps."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(4, 4, k, padding=d * (k // 2), dilation=d, groups=4) for k, d in ((3, 1), (5, 1), (3, 2))]
    model = nn.Sequential(*copy.deepcopy(convs))
    replaced = replace_convs(model, DclsSpec(interpolation, 9, 25, init="preserve"))
    assert model[0].P is model[1].P is model[2].P and model[0].SIG is model[2].SIG
    x = torch.randn(2, 4, 12, 12)
    for name, layer, conv in zip(replaced, model, convs):
        assert distance(layer(x), conv(x)) <= CLOSE[interpolation] and replaced.errors[name] <= CLOSE[interpolation]
        torch.testing.assert_close(layer.bias, conv.bias)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_further_elements_lie_on_free_pixels_with_next_to_no_weight(interpolation):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    layer, error = preserved(conv, interpolation, 14)
    assert error <= CLOSE[interpolation]
    assert layer.weight[..., 9:].abs().max() <= {"v0": 0, "gauss": 2e-3}.get(interpolation, 1e-5)
    axis = row_axis(interpolation)
    places = torch.stack((layer.P[axis], layer.P[1 - axis])).round()[:, 0, 0]
    assert len(set(map(tuple, places.T.tolist()))) == 14
    assert set(map(tuple, places[:, 9:].T.tolist())) >= {(-2, 0), (2, 0), (0, -2), (0, 2)}


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_weights_are_the_least_squares_solution(interpolation):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 5, padding=2, groups=3)
    layer, error = preserved(conv, interpolation, 17)
    target, best = dense(conv, 9), 0.0
    for channel in range(3):
        bumps = []
        for element in range(17):
            one = copy.deepcopy(layer).double()
            one.weight.data.zero_()
            one.weight.data[channel, 0, element] = 1
            bumps.append(one.kernel().detach()[channel].flatten().numpy())
        wanted = target[channel].double().flatten().numpy()
        weights, *_ = np.linalg.lstsq(np.stack(bumps, 1), wanted, rcond=None)
        np.testing.assert_allclose(layer.weight[channel, 0].detach().numpy(), weights, atol=1e-5)
        best += np.square(np.stack(bumps, 1) @ weights - wanted).sum()
    assert error == pytest.approx(best**0.5 / target.norm().item(), rel=1e-3, abs=1e-6)


def best_on_taps(kernels: torch.Tensor, count: int) -> torch.Tensor:
    """Smallest squared error (N) of L kernels (L, N, T), each over its norm, with `count` elements on common taps."""
    unit = kernels / kernels.norm(dim=2, keepdim=True)
    choices = list(itertools.combinations(range(kernels.shape[2]), count))
    kept = torch.stack([unit[..., list(chosen)].square().sum((0, 2)) for chosen in choices])
    return len(kernels) - kept.amax(0)


@pytest.mark.parametrize("interpolation", ["v0", "v1"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("count", range(1, 9))
def test_fewer_elements_are_at_least_as_near_as_the_best_choice_of_taps(count, layers, interpolation):
    torch.manual_seed(count)
    convs = [nn.Conv2d(40, 40, 3, padding=1, groups=40) for _ in range(layers)]
    model = nn.Sequential(*copy.deepcopy(convs))
    replace_convs(model, DclsSpec(interpolation, 5, count, init="preserve"))
    best = best_on_taps(torch.stack([conv.weight.detach().flatten(2)[:, 0] for conv in convs]), count)
    found = torch.zeros(40)
    for layer, conv in zip(model, convs):
        target = dense(conv, 5)
        found += ((layer.kernel() - target).norm(dim=(2, 3)) / target.norm(dim=(2, 3))).square()[:, 0]
    assert (found <= best + 1e-5).all()
    assert found.sum() < 0.95 * best.sum()  # some taps are neighbours that one element covers


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_two_neighbours_of_one_sign_need_one_element(interpolation):
    conv = nn.Conv2d(1, 1, (2, 2), padding_mode="zeros", bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[0.2, 0.6], [-0.5, -0.125]]]]))
    layer, error = preserved(conv, interpolation, 2)
    assert error <= CLOSE[interpolation]
    if interpolation != "gauss":
        torch.testing.assert_close(layer.weight[0, 0], torch.tensor([0.8, -0.625]), rtol=1e-5, atol=1e-5)
        column = layer.P[1 - row_axis(interpolation), 0, 0]
        torch.testing.assert_close(column, torch.tensor([-0.25, -0.8]), rtol=0, atol=1e-5)


def test_a_kernel_of_many_same_signs_is_exact_with_fewer_elements():
    """A smooth kernel, as in pretrained networks: pairs are found wherever they are needed."""
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 32, 7, padding=3, groups=32)
    with torch.no_grad():
        conv.weight.copy_(torch.rand_like(conv.weight) + 0.1)
    for count in (34, 25):  # 25 for 49 taps: no more pairs can be
        assert preserved(conv, "v0", count, 17)[1] < 1e-6


def test_gaussian_skirts_outside_the_taps_are_small_as_the_outer_elements_lean_inwards():
    torch.manual_seed(0)
    for kernel_size in (3, 7):
        conv = nn.Conv2d(32, 32, kernel_size, padding=kernel_size // 2, groups=32)
        layer, error = preserved(conv, "gauss", kernel_size**2, 17)
        assert error < 6e-5
        edge = kernel_size // 2
        assert torch.equal(layer.P[0, 0, 0, : edge + 1].abs(), torch.tensor([edge - 0.25, *range(edge - 1, -1, -1)]))


def test_a_kernel_of_zeros_stays_one():
    conv = nn.Conv2d(2, 2, 3, padding=1, groups=2)
    nn.init.zeros_(conv.weight)
    for count in (4, 9):
        layer, error = preserved(conv, "gauss", count)
        assert error == 0 and not layer.weight.any() and layer.P.isfinite().all()


def test_a_kernel_larger_than_the_plane_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 5, dilation=2, groups=4))
    with pytest.raises(ValueError, match=r"^1: its kernel covers 9x9 pixels.*7x7; take a larger dilated_kernel_size"):
        replace_convs(model, DclsSpec("v1", 7, 25, init="preserve"))
    assert type(model[0]) is nn.Conv2d


def test_another_default_device_does_not_matter():
    conv, layer = nn.Conv2d(4, 4, 3), DclsConv2d(4, 4, 7, dilated_kernel_size=9, interpolation="gauss")
    with torch.device("meta"):
        (error,) = preserve([layer], [conv])
    assert 0 < error < 1 and layer.P.device.type == "cpu"


def test_type_device_and_mode_are_kept_and_double_is_exact():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4).double().eval()
    layer, error = preserved(conv, "v1", 9)
    assert layer.weight.dtype == layer.P.dtype == torch.float64 and not layer.training
    assert error < 1e-10
