"""The CAM family at one layer: closed forms, loops after the formulas, the grad-cam package."""

import numpy as np
import pytest
import pytorch_grad_cam as package
import timm
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from common.errors import UserError
from evaluate.explainers.eigen_cam import eigen_cam
from evaluate.explainers.explain import explain
from evaluate.explainers.grad_cam_pp import channel_weights, grad_cam_pp
from evaluate.explainers.registry import EXPLAINERS
from evaluate.explainers.threshold_grad_cam import threshold_grad_cam
from evaluate.network.passes import head_pass, layer_pass

PACKAGE = {
    "grad_cam": package.GradCAM,
    "grad_cam_pp:form=library": package.GradCAMPlusPlus,
    "xgrad_cam": package.XGradCAM,
    "layer_cam": package.LayerCAM,
    "hires_cam": package.HiResCAM,
}


def rescaled(maps: np.ndarray) -> np.ndarray:
    """Each map on 0..1; the package has done so with an epsilon, in two steps of which the second undoes it."""
    low = maps.min((1, 2), keepdims=True)
    return (maps - low) / (maps.max((1, 2), keepdims=True) - low)


def package_maps(method, model, layer, images, targets, size, reshape=None):
    with method(model, [model.get_submodule(layer)], reshape_transform=reshape) as cam:
        cam.get_target_width_height = lambda tensor: (size[1], size[0])
        return cam(images, [ClassifierOutputTarget(t) for t in targets])


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=10).eval()


@pytest.mark.parametrize("layer", [None, "layer3"])
@pytest.mark.parametrize("name", PACKAGE)
def test_equal_to_the_grad_cam_package(resnet, name, layer):
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(4))
    found = explain(resnet, images, [3, 7], name, layer=layer, size="own")
    ours = found[name]
    assert not found.degenerate[name].any()
    theirs = package_maps(PACKAGE[name], resnet, layer or "layer4", images, [3, 7], ours.shape[1:])
    np.testing.assert_allclose(rescaled(ours.numpy()), rescaled(theirs), atol=3e-4)


def test_the_sign_of_eigen_cam_follows_the_activations_as_they_come():
    """After centring their lengths would say the opposite here."""
    features = torch.tensor([1.0, 9.0, 9.0, 10.0]).view(1, 1, 2, 2)
    signed = eigen_cam(features, relu=False)
    torch.testing.assert_close(signed.flatten(), torch.tensor([-6.25, 1.75, 1.75, 2.75]))
    states = torch.tensor([[1.0, 0.0]] * 40 + [[0.0, 3.0]] * 4 + [[0.2, 0.2]])  # the few long ones lie elsewhere
    bare = eigen_cam(states.T.reshape(1, 2, 5, 9), centre=False, relu=False)
    assert bare.sum() > 0 and bare.amax() > 0.9


def test_eigen_cam_equals_the_package_up_to_its_sign(resnet):
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    signed = explain(resnet, images, None, "eigen_cam", form="raw", size="own")["eigen_cam"].numpy()
    with torch.no_grad():
        features = resnet.forward_features(images).numpy()
    theirs = package.utils.svd_on_activations.get_2d_projection(features)
    for mine, other in zip(signed, theirs):
        np.testing.assert_allclose(mine, other * np.sign((mine * other).sum()), atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("name", ["grad_cam", "layer_cam", "hires_cam", "xgrad_cam"])
@pytest.mark.parametrize("architecture", ["swin", "vit"])
def test_transformers_equal_the_package_with_its_reshaping(name, architecture):
    torch.manual_seed(0)
    images, grid = torch.randn(2, 3, 64, 64), (4, 4)
    if architecture == "vit":
        model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10, depth=3).eval()
        layer, reshape = "blocks.2.norm1", lambda t: t[:, 1:].transpose(1, 2).unflatten(2, grid)
    else:
        model = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=2, num_classes=10, depths=(1, 1, 1, 1)
        ).eval()
        layer, grid, reshape = "norm", (2, 2), lambda t: t.permute(0, 3, 1, 2)
    ours = explain(model, images, [3, 7], name, size="own")[name]
    theirs = package_maps(PACKAGE[name], model, layer, images, [3, 7], grid, reshape)
    np.testing.assert_allclose(rescaled(ours.numpy()), rescaled(theirs), atol=1e-3)


def test_closed_forms_behind_pooling_and_a_linear_layer(pooled_net, images):
    targets = [0, 3, 4]
    weight = pooled_net.fc.weight.detach()[targets]
    with torch.no_grad():
        features = pooled_net.forward_features(images)
        logits = pooled_net(images)
    expected = torch.einsum("bc,bchw->bhw", weight, features) / 64  # the gradient is w / hw everywhere
    names = ["grad_cam", "xgrad_cam", "hires_cam", "layer_cam"]
    raw = explain(pooled_net, images, targets, names, form="raw", size="own")
    torch.testing.assert_close(raw["grad_cam"] * features.shape[1], expected)
    torch.testing.assert_close(raw["hires_cam"], expected)
    torch.testing.assert_close(raw["xgrad_cam"], expected, rtol=1e-4, atol=1e-5)
    positive = torch.einsum("bc,bchw->bhw", weight.relu(), features) / 64
    torch.testing.assert_close(raw["layer_cam"], positive)
    picked = logits.gather(1, torch.tensor(targets)[:, None])[:, 0] - pooled_net.fc.bias.detach()[targets]
    torch.testing.assert_close(raw["hires_cam"].sum((1, 2)), picked)


@pytest.mark.parametrize("layer", ["stem.0", "stem.3", "norm"])
def test_gradients_at_a_layer_equal_finite_differences(pooled_net, images, layer):
    pooled_net, images = pooled_net.double(), images[:1].double()
    found = layer_pass(pooled_net, images, layer, 2)
    module = pooled_net.get_submodule(layer)
    for place in [(0, 0, 0, 0), (0, 5, 3, 2), (0, 7, 7, 7)]:
        values = []
        for step in (1e-4, -1e-4):

            def nudge(_module, _args, output, step=step, place=place):
                output = output.clone()
                output[place] += step
                return output

            handle = module.register_forward_hook(nudge)
            values.append(pooled_net(images)[0, 2].item())
            handle.remove()
        slope = (values[0] - values[1]) / 2e-4
        assert found.gradients[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_head_pass_equals_differentiating_the_whole_network(pooled_net, images):
    features = pooled_net.forward_features(images)
    features.retain_grad()
    pooled_net.forward_head(features)[:, 2].sum().backward()
    found = head_pass(pooled_net, images, 2)
    torch.testing.assert_close(found.gradients, features.grad)
    torch.testing.assert_close(found.features, features.detach())


def test_grad_cam_pp_follows_the_formulas_in_a_loop():
    generator = torch.Generator().manual_seed(0)
    features, gradients = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    gradients[0, 0] = -gradients[0, 0].abs()  # a channel without positive gradient
    gradients[:, :, 0] = 0
    for form in ("library", "official"):
        expected = np.zeros((2, 3))
        for b in range(2):
            for c in range(3):
                a, g = features[b, c].double().numpy(), gradients[b, c].double().numpy()
                alpha = np.zeros_like(g)
                for place in np.ndindex(g.shape):
                    bottom = 2 * g[place] ** 2 + a.sum() * g[place] ** 3
                    if g[place] != 0:
                        alpha[place] = g[place] ** 2 / (bottom + (1e-6 if form == "library" else 0))
                total = alpha[g > 0].sum()
                if form == "official" and total != 0:
                    alpha = alpha / total
                expected[b, c] = (alpha * np.maximum(g, 0)).sum()
        found = channel_weights(features, gradients, form)[:, :, 0, 0].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # With the normalisation, a channel's weight is a weighted mean of its positive gradients.
    features = features.abs()
    weights = channel_weights(features, gradients, "official")[:, :, 0, 0]
    assert (weights <= gradients.relu().amax((2, 3)) + 1e-6).all() and weights[0, 0] == 0


@pytest.mark.parametrize("layer", [None, "layer3"])
def test_grad_cam_pp_is_by_default_what_the_authors_code_computes(resnet, layer):
    """Its steps in turn, with the factor exp(score) on the gradients, in float64."""
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(4))
    found = explain(resnet, images, [3, 7], "grad_cam_pp", layer=layer, size="own")
    passed = layer_pass(resnet, images, layer or "layer4", [3, 7])
    for i, target in enumerate([3, 7]):
        a, g = passed.features[i].double().numpy(), passed.gradients[i].double().numpy()
        factor = np.exp(found.logits[i, target].double().item())
        first, second, third = factor * g, factor * g**2, factor * g**3
        below = 2 * second + third * a.sum((1, 2), keepdims=True)
        alpha = second / np.where(below != 0, below, 1)
        total = np.where(first > 0, alpha, 0).sum((1, 2), keepdims=True)
        weights = (np.maximum(first, 0) * alpha / np.where(total != 0, total, 1)).sum((1, 2))
        expected = np.maximum((weights[:, None, None] * a).sum(0), 0)
        np.testing.assert_allclose(
            found["grad_cam_pp"][i] / found["grad_cam_pp"][i].max(), expected / expected.max(), atol=1e-5
        )


def test_official_grad_cam_pp_ignores_the_scale_of_tiny_gradients_in_its_weights():
    torch.manual_seed(0)
    features, gradients = torch.rand(1, 4, 3, 3), torch.rand(1, 4, 3, 3) * 1e-6
    shares = [w / w.sum() for w in (channel_weights(features, gradients * s, "official") for s in (1, 0.1))]
    torch.testing.assert_close(shares[0], shares[1], rtol=1e-3, atol=0)
    assert channel_weights(features, gradients, "library").max() < 1e-3 * gradients.max()  # damped by eps


def test_eigen_cam_has_a_fixed_sign():
    torch.manual_seed(0)
    features = torch.randn(2, 6, 5, 4)
    features[:, :, 1:3, 1:3] *= 5
    found = eigen_cam(features, relu=False)
    torch.testing.assert_close(eigen_cam(features.flip(1), relu=False), found)
    permuted = features.flatten(2)[:, :, torch.randperm(20)]
    assert permuted.shape == (2, 6, 20)
    lengths = features.norm(dim=1)
    centred = lengths - lengths.mean((1, 2), keepdim=True)
    assert ((found * centred).sum((1, 2)) > 0).all()
    torch.testing.assert_close(eigen_cam(-features, relu=False), found)  # more energy, not more of one sign
    few = torch.randn(2, 3, 5, 4)  # fewer channels than positions: the other Gram matrix
    assert eigen_cam(few, relu=False).abs().amax() > 0


@pytest.mark.parametrize("shape", [(1, 30, 4, 3), (1, 5, 4, 3)])
@pytest.mark.parametrize("centre", [True, False])
def test_eigen_cam_equals_the_svd(shape, centre):
    torch.manual_seed(0)
    features = torch.randn(shape)
    states = features[0].flatten(1).T.double().numpy()
    states = states - states.mean(0) if centre else states
    expected = states @ np.linalg.svd(states)[2][0]
    found = eigen_cam(features, centre=centre, relu=False).flatten().numpy()
    np.testing.assert_allclose(found, expected * np.sign(expected @ found), atol=1e-5)


def test_threshold_grad_cam_parameters():
    torch.manual_seed(0)
    features, gradients = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    weighted = gradients.mean((2, 3), keepdim=True) * features
    first, last = weighted.relu().mean(1), weighted.mean(1).relu()
    free = {"threshold": -np.inf, "normalisation": "none"}
    torch.testing.assert_close(threshold_grad_cam(features, gradients, **free), first)
    torch.testing.assert_close(threshold_grad_cam(features, gradients, order="mean_first", **free), last)
    top = threshold_grad_cam(features, gradients, 0.2, normalisation="max")
    torch.testing.assert_close(top, (first / first.amax((1, 2), keepdim=True)).clamp(min=0.2))
    with pytest.raises(UserError, match="min_max, max or none"):
        threshold_grad_cam(features, gradients, normalisation="z")
    with pytest.raises(UserError, match="relu_first or mean_first"):
        threshold_grad_cam(features, gradients, order="z")
    with pytest.raises(UserError, match="library or official"):
        grad_cam_pp(features, gradients, "z")


@pytest.mark.parametrize("name", [n for n, e in EXPLAINERS.items() if e.family == "gradient"])
def test_images_of_a_batch_do_not_influence_one_another(name):
    torch.manual_seed(0)
    features, gradients = torch.rand(3, 6, 4, 4), torch.randn(3, 6, 4, 4)
    together = EXPLAINERS[name].function(features, gradients)
    for i in range(3):
        alone = EXPLAINERS[name].function(features[i : i + 1], gradients[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)
