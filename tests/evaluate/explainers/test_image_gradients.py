"""Image gradients, guided backpropagation, SmoothGrad and FullGrad's completeness."""

from collections import Counter

import numpy as np
import pytest
import timm
import torch
from pytorch_grad_cam import GuidedBackpropReLUModel
from torch import nn

from common.errors import UserError
from common.guided_relu import GuidedReLU
from evaluate.explainers.explain import explain
from evaluate.explainers.full_grad import decompose
from evaluate.explainers.input_gradient import batched_gradient
from evaluate.network.query import Query


def test_input_gradient_equals_finite_differences(pooled_net, images):
    pooled_net, images = pooled_net.double(), images.double()
    gradient = batched_gradient(Query(pooled_net, images, [0, 1, 4]))
    for b, target in enumerate([0, 1, 4]):
        for place in [(b, 0, 3, 4), (b, 2, 31, 0)]:
            step = torch.zeros_like(images)
            step[place] = 1e-5
            slope = (pooled_net(images + step)[b, target] - pooled_net(images - step)[b, target]) / 2e-5
            assert gradient[place].item() == pytest.approx(slope.item(), rel=1e-3, abs=1e-6)


def test_reductions_over_colours(pooled_net, images):
    gradient = batched_gradient(Query(pooled_net, images, 1))
    names = ["input_gradient", "input_gradient:reduce=sum_abs"]
    maps = explain(pooled_net, images, 1, names)
    torch.testing.assert_close(maps[names[0]], gradient.abs().amax(1))
    torch.testing.assert_close(maps[names[1]], gradient.abs().sum(1))
    raw = explain(pooled_net, images, 1, "input_gradient", form="raw")["input_gradient"]
    torch.testing.assert_close(raw, gradient.sum(1))
    with pytest.raises(UserError, match="max_abs"):
        explain(pooled_net, images, 1, "input_gradient:reduce=norm")


def test_guided_backprop_equals_the_grad_cam_package(images):
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10).eval()
    with GuidedReLU() as mode:
        model(images.clone().requires_grad_()).sum().backward()
    assert mode.passed == {"relu": 17}
    ours = explain(model, images[:1], 4, "guided_backprop", form="raw")["guided_backprop"]
    theirs = GuidedBackpropReLUModel(model, "cpu")(images[:1], 4)
    np.testing.assert_allclose(ours[0].numpy(), theirs.sum(2), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "relu", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), torch.relu, torch.relu_, torch.Tensor.relu]
)
def test_the_guided_rule_at_every_form_of_relu(relu):
    leaf = torch.tensor([-1.0, 2.0, 3.0, 7.0], requires_grad=True)
    with GuidedReLU():
        out = relu(leaf * 1)
    (gradient,) = torch.autograd.grad(out, leaf, torch.tensor([1.0, 1.0, -1.0, 1.0]))
    clipped = isinstance(relu, nn.ReLU6)
    assert gradient.tolist() == [0, 1, 0, 0 if clipped else 1]
    assert out.tolist() == [0, 2, 3, 6 if clipped else 7]


def test_a_clip_that_is_no_relu_keeps_its_own_gradient():
    leaf = torch.tensor([-2.0, -0.5, 0.5, 2.0], requires_grad=True)
    for clip in (nn.functional.hardtanh, nn.Hardtanh(-1, 1), nn.Hardtanh(-1, 1, inplace=True)):
        with GuidedReLU():
            out = clip(leaf * 1)
        (gradient,) = torch.autograd.grad(out, leaf, torch.tensor([1.0, 1.0, -1.0, 1.0]))
        assert out.tolist() == [-1, -0.5, 0.5, 1] and gradient.tolist() == [0, 1, -1, 0]


class Kernel(nn.Module):
    """A convolution whose kernel is built by a ReLU, as those of DCLS are."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight.relu())


NO_RELU = {
    "gelu": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "a ReLU in a kernel": lambda: nn.Sequential(Kernel(), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=4),
    "efficientnet": lambda: timm.create_model("efficientnet_b0", num_classes=4),
    "swin, whose biases of positions come from a ReLU": lambda: timm.create_model(
        "swinv2_tiny_window8_256", img_size=32, window_size=2, depths=(1, 1), embed_dim=24, num_heads=(1, 2)
    ),
}


@pytest.mark.parametrize("name", NO_RELU)
@pytest.mark.parametrize("method", ["guided_backprop", "guided_grad_cam"])
def test_networks_without_a_relu_between_image_and_score_are_refused(images, name, method):
    layer = "0" if name in ("gelu", "a ReLU in a kernel") else None
    with pytest.raises(UserError, match="no ReLU"):
        explain(NO_RELU[name]().eval(), images, 1, method, layer=layer)


NAMES = {
    "ReLU": "relu", "ReLU6": "relu", "GELU": "gelu", "Hardswish": "hardswish", "Hardsigmoid": "hardsigmoid",
    "Sigmoid": "sigmoid",
}  # fmt: skip
MIXED = {
    "fastvit_sa24": {"gelu": 31, "relu": 1, "sigmoid": 1},
    "mobilenetv3_small_050": {"hardswish": 19, "relu": 14, "hardsigmoid": 9},
    "seresnet18": {"relu": 25, "sigmoid": 8},
    "resnet18": {"relu": 17},
    "mobilenetv2_050": {"relu": 35},
}


@pytest.mark.parametrize("architecture", MIXED)
def test_the_map_of_a_network_of_other_functions_says_how_many_there_are(architecture):
    """Counted by the modules that run; several slices count once. Networks of ReLU and ReLU6 have nothing to say."""
    torch.manual_seed(0)
    model, ran = timm.create_model(architecture, num_classes=4).eval(), []
    for module in model.modules():
        if type(module).__name__ in NAMES:  # timm has a sigmoid of its own
            module.register_forward_hook(lambda module, *_: ran.append(NAMES[type(module).__name__]))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model(images)
    counts = Counter(ran)
    assert counts == MIXED[architecture]
    methods = ["guided_backprop", "guided_grad_cam", "input_gradient", "eigen_cam"]
    notes = explain(model, images, 1, methods, micro_batch=4).notes
    assert list(notes) == ["guided_backprop", "guided_grad_cam", "eigen_cam"] and notes["eigen_cam"] == "knows no class"
    others = [f"{name} ({count})" for name, count in counts.most_common() if name != "relu"]
    found = (
        f"; here ReLUs are {counts['relu']} of {counts.total()} activation functions, "
        f"the plain gradient passes {', '.join(others)}"
    )
    for name in methods[:2]:
        assert notes[name] == "needs a network of ReLUs" + found * bool(others)


def test_guided_grad_cam_is_the_product(pooled_net, images):
    with torch.no_grad():
        pooled_net.fc.weight[1, ::2] *= -1
    assert explain(pooled_net, images, 1, "grad_cam", form="raw")["grad_cam"].amin() < 0  # what ReLU drops counts not
    maps = explain(pooled_net, images, 1, ["guided_backprop", "grad_cam", "guided_grad_cam"])
    torch.testing.assert_close(maps["guided_grad_cam"], maps["guided_backprop"] * maps["grad_cam"])


def test_smooth_grad_without_noise_is_the_gradient(pooled_net, images):
    plain = explain(pooled_net, images, 1, ["input_gradient", "input_gradient:reduce=sum"])
    found = explain(pooled_net, images, 1, ["smooth_grad:noise=0", "smooth_grad:noise=0,magnitude=false"])
    torch.testing.assert_close(found["smooth_grad:noise=0"], plain["input_gradient"] ** 2)
    torch.testing.assert_close(found["smooth_grad:noise=0,magnitude=false"], plain["input_gradient"])
    raw = explain(pooled_net, images, 1, "smooth_grad:noise=0", form="raw")["smooth_grad:noise=0"]
    torch.testing.assert_close(raw, plain["input_gradient:reduce=sum"])  # signed, so of gradients


def test_smooth_grad_is_the_mean_of_squares_as_in_the_authors_loop_and_of_gradients_if_asked(pooled_net, images):
    generators, squares, gradients = Query(pooled_net, images, 1, seed=4).generators(), 0, 0
    for n in range(25):
        noisy = images.clone()
        for image, generator in zip(noisy, generators):
            image += 0.15 * (image.max() - image.min()) * torch.randn(3, 32, 32, generator=generator)
        gradient = batched_gradient(Query(pooled_net, noisy, 1))
        squares = squares + gradient * gradient
        gradients = gradients + gradient if n < 3 else gradients
    method = "smooth_grad:samples=3,magnitude=false"
    found = explain(pooled_net, images, 1, ["smooth_grad", method], seed=4)
    torch.testing.assert_close(found["smooth_grad"], (squares / 25).amax(1))
    torch.testing.assert_close(found[method], (gradients / 3).abs().amax(1))
    with pytest.raises(UserError, match="whole number from 1 on"):
        explain(pooled_net, images, 1, "smooth_grad:samples=0")


@pytest.mark.parametrize("act", ["relu", "gelu"])
@pytest.mark.parametrize("name", ["resnet18", "repvgg_a0"])
def test_full_grad_is_complete_in_networks_of_relu(name, act):
    """Input term and bias terms add up to the logit; with another nonlinearity they must not."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, act_layer=act).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    query = Query(model, torch.randn(2, 3, 64, 64), [3, 7])
    total, score = decompose(query).total(), query.scores.double()
    if act == "gelu":
        assert not torch.allclose(total, score, rtol=1e-2, atol=0)
    else:
        torch.testing.assert_close(total, score, rtol=1e-3, atol=1e-4)


def test_full_grad_is_complete_with_layers_that_work_in_place(inplace_net, pooled_net, images):
    for net in (inplace_net, pooled_net):
        query = Query(net, images, [0, 1, 4])
        parts = decompose(query)
        assert len(parts.bias_terms) == 3 and len(parts.linear_terms) == 1  # two batch norms, the second convolution
        torch.testing.assert_close(parts.total(), query.scores.double(), rtol=1e-4, atol=1e-5)


def test_full_grad_is_complete_with_biases_of_every_kind(images):
    """A convolution's bias without batch norm, a batch norm without weight and bias, and one without weight."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(),
        nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5, eps=0.1, affine=False), nn.ReLU(),
        nn.Conv2d(5, 4, 3, bias=False), nn.BatchNorm2d(4, eps=0.1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5, bias=False),
    ).eval()  # fmt: skip
    for norm in (net[3], net[6]):
        norm.running_mean.normal_(0, 0.5)
        norm.running_var.uniform_(0.2, 0.6)
    nn.init.normal_(net[6].bias)
    net[6].register_parameter("weight", None)
    query = Query(net, images, [0, 1, 4])
    parts = decompose(query)
    assert [tuple(term.shape[1:]) for term in parts.bias_terms] == [(6, 30, 30), (5, 28, 28), (4, 26, 26)]
    torch.testing.assert_close(parts.total(), query.scores.double(), rtol=1e-4, atol=1e-5)


def test_full_grad_map_follows_the_published_loop(pooled_net, images):
    query = Query(pooled_net, images[:1], 1)
    parts = decompose(query)

    def psi(t):
        t = t.abs()
        t = t - t.min()
        return t / (t.max() + 1e-6)

    total = psi(parts.input_term).sum(1)
    for term in parts.bias_terms:
        if term.ndim == 4:
            up = nn.functional.interpolate(psi(term), (32, 32), mode="bilinear", align_corners=True)
            total = total + up.sum(1)
    torch.testing.assert_close(explain(pooled_net, images[:1], 1, "full_grad")["full_grad"], total)
