"""Grad-CAM and Threshold-Grad-CAM against the published operations in a plain loop, and against grad-cam."""

import numpy as np
import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from common.models.zoo import create_model
from evaluate.explainers.grad_cam import grad_cam
from evaluate.explainers.threshold_grad_cam import threshold_grad_cam
from evaluate.network.passes import head_pass


def published_maps(features: np.ndarray, gradients: np.ndarray, threshold: float | None) -> np.ndarray:
    """The study's steps for one image, (C, h, w) each, with loops."""
    channels, height, width = features.shape
    total = np.zeros((height, width))
    for c in range(channels):
        weighted = gradients[c].mean() * features[c]
        total += np.maximum(weighted, 0) if threshold is not None else weighted
    total /= channels
    if threshold is None:
        return np.maximum(total, 0)
    total = (total - total.min()) / (total.max() - total.min())
    return np.maximum(total, threshold)


@pytest.mark.parametrize("threshold", [None, 0.3, 0.6])
def test_maps_follow_the_published_steps(threshold):
    torch.manual_seed(0)
    features, gradients = torch.randn(3, 6, 7, 5), torch.randn(3, 6, 7, 5)
    found = grad_cam(features, gradients)
    if threshold is not None:
        found = threshold_grad_cam(features, gradients, threshold)
    for image in range(3):
        expected = published_maps(features[image].double().numpy(), gradients[image].double().numpy(), threshold)
        np.testing.assert_allclose(found[image].numpy(), expected, atol=1e-5)


def test_a_flat_map_becomes_the_constant_threshold_not_nan():
    features = torch.ones(2, 3, 4, 4)
    features[1, 0, 0, 0] = 5
    found = threshold_grad_cam(features, torch.ones(2, 3, 4, 4))
    assert (found[0] == 0.3).all() and torch.isfinite(found).all() and found[1].max() == 1


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv2_050"])
def test_one_head_pass_equals_differentiating_the_whole_network(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    images, targets = torch.randn(2, 3, 64, 64), torch.tensor([3, 7])
    seen = {}
    whole = model.forward_features(images)
    whole.retain_grad()
    logits = model.forward_head(whole)
    (logits[0, 3] + logits[1, 7]).backward()
    seen["gradients"] = whole.grad
    passed = head_pass(model, images, targets)
    torch.testing.assert_close(passed.features, whole.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(passed.gradients, seen["gradients"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(passed.logits, logits.detach(), rtol=1e-4, atol=1e-5)


def test_head_pass_works_inside_no_grad_with_frozen_parameters_and_leaves_no_gradient():
    model = timm.create_model("resnet18", num_classes=10).eval().requires_grad_(False)
    with torch.no_grad():
        passed = head_pass(model, torch.randn(1, 3, 64, 64))
    assert passed.gradients.abs().sum() > 0 and all(p.grad is None for p in model.parameters())
    assert not passed.features.requires_grad and not passed.gradients.requires_grad


def test_head_pass_explains_the_predicted_class_by_default():
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10).eval()
    images = torch.randn(2, 3, 64, 64)
    default = head_pass(model, images)
    explicit = head_pass(model, images, default.logits.argmax(1))
    assert torch.equal(default.gradients, explicit.gradients)


@pytest.mark.parametrize("name", ["convnext_t", "resnet50", "caformer_s18", "fastvit_sa24"])
def test_grad_cam_equals_the_grad_cam_package(name):
    torch.manual_seed(0)
    model = create_model(name, 10).eval()
    layer = {"convnext_t": "stages", "resnet50": "layer4", "caformer_s18": "stages", "fastvit_sa24": "final_conv"}[name]
    images, targets = torch.randn(2, 3, 96, 96), [1, 4]
    passed = head_pass(model, images, torch.tensor(targets))
    ours = grad_cam(passed.features, passed.gradients)
    peak = ours.amax((1, 2), keepdim=True)
    ours = (ours - ours.amin((1, 2), keepdim=True)) / (peak - ours.amin((1, 2), keepdim=True))
    with GradCAM(model, [model.get_submodule(layer)]) as cam:
        # At the map's own size, so that only its min-max normalisation stands between the two.
        cam.get_target_width_height = lambda tensor: (ours.shape[2], ours.shape[1])
        theirs = cam(images, [ClassifierOutputTarget(t) for t in targets])
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-4)
