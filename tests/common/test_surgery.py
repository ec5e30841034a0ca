"""Model surgery: the rules of the study, shared positions, folding, clamping, the repulsive loss."""

import copy
import itertools

import pytest
import timm
import torch
from torch import nn

from common.dcls import DclsConv2d
from common.surgery import DclsSpec, clamp_positions, fold_dcls, position_groups, replace_convs, repulsive_loss

SMALL = DclsSpec("gauss", 9, 4)


def tiny_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 4, 7, padding=3, groups=4, bias=False),
        nn.Conv2d(4, 4, 7, padding=3, stride=2, groups=4),
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(8, 8, 5, padding=2, groups=8, padding_mode="reflect"),
        nn.Conv2d(8, 8, 1, groups=8),
    )


def test_replaces_what_the_rule_selects_and_keeps_stride_bias_and_padding_mode():
    model = tiny_net()
    assert replace_convs(model, SMALL) == ["1", "2", "4"]
    assert model[1].bias is None and model[2].bias is not None and not model[2].bias.any()
    assert model[2].stride == (2, 2) and model[4].padding_mode == "reflect"
    assert isinstance(model[0], nn.Conv2d) and isinstance(model[5], nn.Conv2d)
    x = torch.randn(1, 3, 16, 16)
    assert model(x).shape == tiny_net()(x).shape


def test_positions_are_shared_within_a_stage_only():
    model = tiny_net()
    replace_convs(model, SMALL)
    assert model[1].P is model[2].P and model[1].SIG is model[2].SIG
    assert model[1].P is not model[4].P and model[1].weight is not model[2].weight
    groups = position_groups(model)
    assert [g.name for g in groups] == ["1.P", "4.P"]
    assert [[name for name, _ in g.layers] for g in groups] == [["1", "2"], ["4"]]


def test_sharing_survives_deepcopy_and_moves():
    model = tiny_net()
    replace_convs(model, SMALL)
    model = copy.deepcopy(model).double()
    assert model[1].P is model[2].P and len(position_groups(model)) == 2


def test_without_sharing_each_layer_has_its_own_positions():
    model = tiny_net()
    replace_convs(model, DclsSpec("v1", 9, 4, share_positions=False))
    assert len(position_groups(model)) == 3


def test_other_initial_values_of_the_study():
    model = tiny_net()
    replace_convs(model, DclsSpec("v0", 17, 40))
    assert 0.015 < model[4].weight.std().item() < 0.025
    assert model[4].P.std().item() == pytest.approx(0.5, abs=0.06)
    kaiming = tiny_net()
    replace_convs(kaiming, DclsSpec("v0", 17, 40, weight_init="kaiming"))
    assert kaiming[4].weight.abs().max() <= 1 / 40**0.5  # uniform bound of gain / sqrt(fan_in) with a = sqrt(5)


def test_resnet_keeps_strides_and_only_the_3x3():
    model = timm.create_model("resnet50")
    names = replace_convs(model, DclsSpec("v0", 7, 5, "3x3", weight_init="kaiming"))
    assert len(names) == 16 and all(name.endswith("conv2") for name in names)
    assert model.layer2[0].conv2.stride == (2, 2) and model.layer2[0].conv2.padding == (3, 3)
    assert model.conv1.kernel_size == (7, 7) and type(model.conv1) is nn.Conv2d


def test_a_rule_that_selects_nothing_is_an_error():
    with pytest.raises(ValueError, match="selects no convolution of Sequential"):
        replace_convs(nn.Sequential(nn.Conv2d(3, 4, 1)), SMALL)


def test_a_dilated_convolution_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2, groups=4))
    with pytest.raises(ValueError, match=r"0: dilation \(2, 2\)"):
        replace_convs(model, SMALL)


@pytest.mark.parametrize(
    "kwargs", [{"interpolation": "v7"}, {"rule": "all"}, {"weight_init": "x"}, {"kernel_count": 0}]
)
def test_spec_refuses_unknown_values(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        DclsSpec(**{"interpolation": "v1", "dilated_kernel_size": 7, "kernel_count": 3, **kwargs})


def test_fold_removes_every_dcls_layer_and_keeps_the_function():
    model = tiny_net()
    replace_convs(model, SMALL)
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    folded = fold_dcls(model)
    assert folded is model and not any(isinstance(m, DclsConv2d) for m in model.modules())
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-6)


def test_clamp_brings_shared_positions_back():
    model = tiny_net()
    replace_convs(model, SMALL)
    with torch.no_grad():
        model[1].P.fill_(50)
        model[4].P.fill_(-50)
    clamp_positions(model)
    assert (model[2].P == 4).all() and (model[4].P == -4).all()


def test_repulsive_loss_equals_a_loop_over_pairs():
    torch.manual_seed(0)
    model = tiny_net()
    replace_convs(model, DclsSpec("v1", 9, 5))
    per_group = []
    for positions in (model[1].P, model[4].P):
        _, cout, cin, k = positions.shape
        total = 0.0
        for o, i in itertools.product(range(cout), range(cin)):
            for a, b in itertools.combinations(range(k), 2):
                gap = (positions[:, o, i, a] - positions[:, o, i, b]).norm().item()
                total += max(0.0, 1 - gap)
        per_group.append(2 / (k * (k - 1) * cout * cin) * total)
    assert repulsive_loss(model).item() == pytest.approx(sum(per_group) / 2, rel=1e-5)


def test_repulsive_loss_pushes_elements_apart_and_vanishes_when_they_are():
    model = nn.Sequential(DclsConv2d(1, 1, 2, dilated_kernel_size=9, interpolation="v1"))
    with torch.no_grad():
        model[0].P[:, 0, 0] = torch.tensor([[0.0, 0.5], [0.0, 0.0]])
    loss = repulsive_loss(model)
    loss.backward()
    assert loss.item() == pytest.approx(0.5)
    assert model[0].P.grad[0, 0, 0, 0] > 0 > model[0].P.grad[0, 0, 0, 1]  # a descent step moves them apart
    with torch.no_grad():
        model[0].P[0, 0, 0, 1] = 3.0
    assert repulsive_loss(model).item() == 0


def test_repulsive_loss_has_finite_gradients_where_elements_coincide():
    model = nn.Sequential(DclsConv2d(1, 1, 3, dilated_kernel_size=9, interpolation="v1"))
    nn.init.zeros_(model[0].P)
    repulsive_loss(model).square().backward()
    assert torch.isfinite(model[0].P.grad).all()


def test_repulsive_loss_of_a_plain_model_is_an_error():
    with pytest.raises(ValueError, match="DCLS layers"):
        repulsive_loss(tiny_net())
