"""Model surgery: the rules of the study, shared positions, folding, clamping, the repulsive loss."""

import copy
import dataclasses
import itertools
import json

import pytest
import timm
import timm.layers
import torch
from torch import nn

from common.constraints import constrain
from common.dcls import DclsConv2d, SamePadding
from common.dcls_spec import DclsSpec
from common.surgery import fold_dcls, position_groups, replace_convs, repulsive_loss

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
    with pytest.raises(ValueError, match="select selects no convolution of Sequential"):
        replace_convs(tiny_net(), SMALL, select=lambda name, conv: False)


CONVOLUTIONS = {
    "odd": {"kernel_size": 3, "padding": 1},
    "even": {"kernel_size": 2, "stride": 2},
    "patches": {"kernel_size": 4, "stride": 4},
    "not square": {"kernel_size": (1, 7), "padding": (0, 3)},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "unpadded": {"kernel_size": 3, "stride": 2},
    "same": {"kernel_size": 4, "padding": "same"},
    "same, dilated": {"kernel_size": 3, "padding": "same", "dilation": 2},
    "valid": {"kernel_size": 5, "padding": "valid"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "stride": 2},
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("size", [9, 10])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_map_keeps_its_size_and_its_place(kind, size):
    """An element on the centre of the kernel does what the centre tap did."""
    conv = nn.Conv2d(4, 4, groups=4, bias=False, **CONVOLUTIONS[kind])
    model = nn.Sequential(copy.deepcopy(conv))
    replace_convs(model, DclsSpec("v0", size, 1))
    with torch.no_grad():
        model[0].P.zero_()
        model[0].weight.fill_(1)
        conv.weight.zero_()
        # The middle of what the kernel covers; there is no tap in the middle of an even one.
        conv.weight[..., conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
    for side in (13, 16):
        x = torch.randn(1, 4, side, side + 1)
        torch.testing.assert_close(model(x), conv(x))


@pytest.mark.parametrize("architecture", ["tf_efficientnet_b0", "mobilenetv2_100"])
def test_a_network_padded_as_tensorflow_keeps_its_maps(architecture):
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=3, **({} if "tf_" in architecture else {"pad_type": "same"}))
    plain = copy.deepcopy(model).eval()
    names = replace_convs(model.eval(), DclsSpec("v1", 9, 4))
    same = [name for name in names if type(plain.get_submodule(name)) is timm.layers.Conv2dSame]
    assert same and all(isinstance(model.get_submodule(name).padding, SamePadding) for name in same)
    shapes: dict[str, list[torch.Size]] = {}
    for network in (plain, model):
        for name in names:
            network.get_submodule(name).register_forward_hook(
                lambda module, given, out, name=name: shapes.setdefault(name, []).append(out.shape)
            )
        with torch.no_grad():
            network(torch.randn(1, 3, 75, 64))
    assert all(before == after for before, after in shapes.values())


class Filtered(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    "make,kind",
    [
        (lambda: timm.layers.StdConv2d(4, 4, 3, groups=4), "a StdConv2d"),
        (lambda: timm.layers.ScaledStdConv2d(4, 4, 3, groups=4), "a ScaledStdConv2d with gain"),
        (lambda: timm.layers.StdConv2dSame(4, 4, 3, groups=4), "a StdConv2dSame"),
        (lambda: Filtered(4, 4, 3, groups=4), "a Filtered"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, groups=4)), "a ParametrizedConv2d"),
        (lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 3, groups=4)), "a Conv2d with weight_orig"),
    ],
)
@pytest.mark.parametrize("init", ["fresh", "preserve"])
def test_a_convolution_of_another_kind_is_refused_by_name_and_nothing_is_changed(make, kind, init):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), make())
    with pytest.raises(ValueError, match=rf"^1 is {kind}.*Leave it out.*select=.*put a torch.nn.Conv2d"):
        replace_convs(model, dataclasses.replace(SMALL, init=init))
    assert type(model[0]) is nn.Conv2d
    assert replace_convs(model, SMALL, select=lambda name, conv: name == "0") == ["0"]


def test_padding_that_a_smaller_kernel_would_cut_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^0: padding is .*-.*take a larger dilated_kernel_size"):
        replace_convs(nn.Sequential(nn.Conv2d(4, 4, 7, groups=4)), DclsSpec("v1", 3, 2))


@pytest.mark.parametrize(
    "rule,expected",
    [
        ("3x3", ["0"]),
        (["1", "4"], ["1", "4"]),
        (("[24]",), ["2", "4"]),
        ("*", ["0", "1", "2", "3", "4", "5"]),
    ],
)
def test_layers_are_chosen_by_rule_names_or_pattern(rule, expected):
    model = tiny_net()
    spec = DclsSpec("v1", 9, 4, rule)
    assert replace_convs(model, spec) == expected
    plain = json.loads(json.dumps(dataclasses.asdict(spec)))
    assert DclsSpec(**plain) == spec and hash(DclsSpec(**plain)) == hash(spec)


def test_a_pattern_chooses_one_stage():
    model = timm.create_model("convnext_atto")
    names = replace_convs(model, DclsSpec("v1", 9, 4, "stages.3.*.conv_dw"))
    assert names == [f"stages.3.blocks.{i}.conv_dw" for i in range(2)]
    assert type(model.stages[2].blocks[0].conv_dw) is nn.Conv2d


def test_a_name_that_is_none_gets_the_nearest_right_one():
    model = timm.create_model("resnet18")
    with pytest.raises(ValueError, match=r"ResNet has no convolution called layer4.0.conv3; did you mean layer4.0"):
        replace_convs(model, DclsSpec("v1", 9, 4, ["layer4.1.conv1", "layer4.0.conv3"]))
    assert type(model.layer4[1].conv1) is nn.Conv2d


def test_layers_are_chosen_by_a_function_and_kept_as_names():
    model, spec = tiny_net(), DclsSpec("v1", 9, 4)
    names = replace_convs(model, spec, select=lambda name, conv: conv.out_channels == 4 and name > "0")
    assert names == ["1", "2"]
    again = tiny_net()
    replace_convs(again, dataclasses.replace(spec, rule=tuple(names)))
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("init", ["fresh", "preserve"])
def test_a_bare_convolution_becomes_a_layer_and_folds_back(init):
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    x = torch.randn(2, 4, 8, 8)
    before = conv(x)
    names = replace_convs(conv, DclsSpec("v1", 9, 9, init=init))
    assert names == [""] and isinstance(conv, DclsConv2d) and conv(x).shape == before.shape
    after = conv(x)
    assert fold_dcls(conv) is conv and type(conv) is nn.Conv2d
    torch.testing.assert_close(conv(x), after)
    assert init == "fresh" or torch.allclose(after, before, atol=1e-5)


def test_a_convolution_used_twice_is_replaced_and_folded_at_both_places():
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    model = nn.ModuleDict({"a": conv, "b": nn.Sequential(conv)})
    assert replace_convs(model, SMALL) == ["a"]
    assert isinstance(model["b"][0], DclsConv2d) and model["b"][0] is model["a"]
    fold_dcls(model)
    assert type(model["b"][0]) is nn.Conv2d and model["b"][0] is model["a"]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"interpolation": "v7"},
        {"rule": "all"},
        {"rule": []},
        {"rule": [3]},
        {"weight_init": "x"},
        {"init": "keep"},
        {"kernel_count": 0},
        {"dilated_kernel_size": -1},
        {"kernel_count": 50, "init": "preserve"},
    ],
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
    constrain(model)
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
