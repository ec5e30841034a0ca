"""The demo network: timm's interface, a map worth explaining, and depthwise layers that surgery replaces."""

import pytest
import torch
from torch import nn

from common.dcls import DclsConv2d
from common.dcls_spec import DclsSpec
from common.models.demo_net import DemoNet
from common.surgery import position_groups, replace_convs


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def depthwise(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]


def test_head_of_features_is_the_model(images):
    model = DemoNet(7).eval()
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, 8, 8)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    logits = model(images)
    assert logits.shape == (2, model.num_classes) == (2, 7)
    torch.testing.assert_close(model.forward_head(features), logits, rtol=0, atol=0)
    torch.testing.assert_close(model.get_classifier()(pooled), logits, rtol=0, atol=0)


def test_the_target_layer_gives_the_last_map_which_is_not_negative(images):
    model, seen = DemoNet().eval(), []
    model.get_submodule("stages").register_forward_hook(lambda module, inputs, output: seen.append(output))
    features = model.forward_features(images)
    assert seen[0] is features
    assert features.min() == 0 < features.max()


@pytest.mark.parametrize("size", [49, 64, 96])
def test_the_map_is_an_eighth_of_the_image(size):
    assert DemoNet().eval().forward_features(torch.zeros(1, 3, size, size)).shape[2:] == (-(-size // 8),) * 2


def test_the_head_can_be_replaced_and_left_out(images):
    model = DemoNet(12).double().eval()
    model.reset_classifier(5)
    assert model.num_classes == model.get_classifier().out_features == 5
    assert model(images.double()).shape == (2, 5)
    model.reset_classifier(0)
    assert model(images.double()).shape == (2, model.num_features)
    assert DemoNet(0)(images).shape == (2, model.num_features)


def test_the_config_names_real_modules_and_the_preprocessing():
    model = DemoNet(num_classes=9, in_chans=1)
    config = model.pretrained_cfg
    assert model.default_cfg is config
    assert config["input_size"] == (1, 64, 64) and len(config["mean"]) == len(config["std"]) == 1
    assert (config["num_classes"], config["crop_pct"], config["interpolation"]) == (9, 1.0, "bilinear")
    assert model.get_submodule(config["classifier"]) is model.get_classifier()
    assert model.get_submodule(config["first_conv"]).in_channels == 1


def test_twins_are_small_and_of_like_size():
    plain, twin = DemoNet(), DemoNet()
    replaced = replace_convs(twin, DclsSpec("v1", 11, 24))
    sizes = [sum(p.numel() for p in model.parameters()) for model in (plain, twin)]
    assert max(sizes) < 600_000
    assert abs(sizes[0] - sizes[1]) < 0.02 * sizes[0]
    assert len(replaced) == len(depthwise(plain)) == 4
    assert not depthwise(twin) and sum(isinstance(m, DclsConv2d) for m in twin.modules()) == 4
    assert [len(group.layers) for group in position_groups(twin)] == [3, 1]  # one P a stage


def test_every_parameter_learns(images):
    model = DemoNet()
    model(images).logsumexp(1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_memory_format_does_not_change_the_function(images):
    model = DemoNet().eval()
    plain = model(images)
    last = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("widths", "depths"), [((8, 8), (1, 1)), ((8,), (1, 1)), ((), ())])
def test_stages_that_surgery_could_not_tell_apart_are_refused(widths, depths):
    with pytest.raises(ValueError, match="stage"):
        DemoNet(widths=widths, depths=depths)
