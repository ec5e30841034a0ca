"""Score-CAM, Ablation-CAM, RISE, occlusion, the controls and the micro-batch, against loops and the package."""

import math

import numpy as np
import pytest
import pytorch_grad_cam as package
import timm
import torch
import torch.nn.functional as F
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.ndimage import map_coordinates

from common.errors import UserError
from common.models.transform import ModelTransform
from evaluate.explainers.explain import explain
from evaluate.explainers.rise import grow, random_masks
from evaluate.network.micro_batch import MicroBatch
from evaluate.network.query import Query


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("tqdm.tqdm", lambda iterable, **_: iterable)


def package_map(method, model, layer, images, targets, size):
    with method(model, [layer]) as cam:
        cam.get_target_width_height = lambda tensor: (size[1], size[0])
        return cam(images, [ClassifierOutputTarget(t) for t in targets])


def test_score_cam_equals_the_grad_cam_package(pooled_net, images):
    method = "score_cam:weighting=softmax,align_corners=True"
    ours = explain(pooled_net, images, [0, 1, 4], method, size="own", form="normalised")[method]
    theirs = package_map(package.ScoreCAM, pooled_net, pooled_net.act, images, [0, 1, 4], ours.shape[1:])
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)


@pytest.mark.parametrize("substrate", ["mean", "black"])
def test_score_cam_with_probabilities_follows_the_published_loop(pooled_net, images, substrate):
    pooled_net.norm.weight.data[2] = 0
    pooled_net.norm.bias.data[2] = 1  # a constant channel is left out
    transform = ModelTransform(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    mean, std = torch.tensor(transform.mean).view(3, 1, 1), torch.tensor(transform.std).view(3, 1, 1)
    method = "score_cam" if substrate == "mean" else "score_cam:substrate=black"  # of itself as the authors' code
    ours = explain(pooled_net, images, 1, method, size="own", transform=transform)[method]
    with torch.no_grad():
        features = pooled_net.forward_features(images)
        for b, image in enumerate(images):
            total = 0
            for channel in features[b]:
                mask = F.interpolate(channel[None, None], (32, 32), mode="bilinear", align_corners=False)[0]
                if channel.max() == channel.min():
                    continue
                mask = (mask - mask.min()) / (mask.max() - mask.min())
                masked = image * mask if substrate == "mean" else ((image * std + mean) * mask - mean) / std
                total = total + pooled_net(masked[None]).softmax(1)[0, 1] * channel
            torch.testing.assert_close(ours[b], total.relu(), rtol=1e-4, atol=1e-5)


def test_score_cam_of_a_function_of_the_logits_has_no_probability_but_a_softmax(pooled_net, images):
    with pytest.raises(ValueError, match="needs a class for each image"):
        explain(pooled_net, images, lambda logits: logits[:, 1], "score_cam")
    method = "score_cam:weighting=softmax"
    found = explain(pooled_net, images, lambda logits: logits[:, 1], method)[method]
    torch.testing.assert_close(found, explain(pooled_net, images, 1, method)[method])


def test_ablation_cam_equals_the_grad_cam_package_behind_a_relu(pooled_net, images):
    ours = explain(pooled_net, images, [0, 1, 4], "ablation_cam", size="own", form="normalised")["ablation_cam"]
    theirs = package_map(package.AblationCAM, pooled_net, pooled_net.act, images, [0, 1, 4], ours.shape[1:])
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)


def test_ablation_cam_behind_an_affine_head_is_the_lost_share(pooled_net, images):
    query = Query(pooled_net, images, 2)
    lost = (query.gradients * query.features).sum((2, 3)) / query.scores[:, None]
    expected = torch.einsum("bc,bchw->bhw", lost, query.features)
    found = explain(pooled_net, images, 2, "ablation_cam", size="own", form="raw")["ablation_cam"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layer", ["stem.3", "act"])
def test_ablation_cam_at_a_named_layer_follows_a_loop(pooled_net, images, layer):
    module = pooled_net.get_submodule(layer)
    found = explain(pooled_net, images, 2, "ablation_cam", layer=layer, size="own", form="raw")["ablation_cam"]
    query = Query(pooled_net, images, 2, layer)
    scores, weights = query.scores, torch.zeros(3, 12)
    for c in range(12):

        def drop(_module, _args, output, c=c):
            output = output.clone()
            output[:, c] = 0
            return output

        handle = module.register_forward_hook(drop)
        with torch.no_grad():
            weights[:, c] = (scores - pooled_net(images)[:, 2]) / scores
        handle.remove()
    torch.testing.assert_close(found, torch.einsum("bc,bchw->bhw", weights, query.features), rtol=1e-3, atol=1e-5)


def test_ablation_cam_of_tokens_drops_the_channel_everywhere():
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4, depth=1, embed_dim=12, num_heads=2)
    images = torch.randn(2, 3, 32, 32)
    query = Query(vit.eval(), images, 1)
    scores = query.scores
    found = explain(vit, images, 1, "ablation_cam", size="own", form="raw")["ablation_cam"]
    weights = torch.zeros(2, 12)
    for c in range(12):
        keep = torch.ones(12)
        keep[c] = 0
        handle = vit.blocks[0].norm1.register_forward_hook(lambda _m, _a, output, keep=keep: output * keep)
        with torch.no_grad():
            weights[:, c] = 1 - vit(images)[:, 1] / scores
        handle.remove()
    torch.testing.assert_close(found, torch.einsum("bc,bchw->bhw", weights, query.features), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        "score_cam", "ablation_cam", "rise:masks=7", "occlusion", "opti_cam:iterations=3", "full_grad",
        "input_gradient", "guided_backprop", "smooth_grad:samples=2",
    ],
)  # fmt: skip
@pytest.mark.parametrize("layer", [None, "stem.3"])
def test_the_size_of_the_micro_batch_changes_nothing(pooled_net, images, method, layer):
    given = {"transform": ModelTransform(), "layer": layer}
    pooled_net, images = pooled_net.double(), images.double()  # Adam turns rounding of tiny gradients into steps
    whole = explain(pooled_net, images, [0, 1, 4], method, micro_batch=1000, **given)[method]
    small = explain(pooled_net, images, [0, 1, 4], method, micro_batch=5, **given)[method]
    torch.testing.assert_close(whole, small, rtol=1e-4, atol=1e-5)


CPU_MESSAGE = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(CPU_MESSAGE),
        RuntimeError("FIND was unable to find an engine to execute this computation"),  # cuDNN, for want of memory
    ],
)
def test_micro_batch_halves_when_memory_runs_out_and_remembers(error):
    micro, seen = MicroBatch(64, torch.device("cpu")), []

    def work(part: slice) -> torch.Tensor:
        seen.append(part.stop - part.start)
        if part.stop - part.start > 10:
            raise error
        return torch.arange(part.start, part.stop)

    assert micro.run(30, work).tolist() == list(range(30))
    assert seen == [30, 15, 7, 7, 7, 7, 2]
    seen.clear()
    micro.run(9, work)
    assert seen == [7, 2]


def test_micro_batch_counts_what_a_row_costs():
    micro, seen = MicroBatch(16, torch.device("cpu")), []

    def work(part: slice) -> torch.Tensor:
        seen.append(part.stop - part.start)
        if part.stop - part.start > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.arange(part.start, part.stop)

    assert micro.run(5, work, cost=4).tolist() == list(range(5))
    assert seen == [4, 2, 2, 1] and micro.size == 8


def test_the_allocator_of_the_cpu_is_understood():
    micro = MicroBatch(2, torch.device("cpu"))
    too_much = 10**15
    micro.run(2, lambda part: torch.empty(too_much if part.stop - part.start == 2 else 1))
    assert micro.size == 1


def test_micro_batch_gives_up_at_one_row_and_passes_other_errors():
    def out_of_memory(part: slice) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(part: slice) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(torch.OutOfMemoryError):
        MicroBatch(64, torch.device("cpu")).run(30, out_of_memory)
    with pytest.raises(RuntimeError, match="shapes"):
        MicroBatch(64, torch.device("cpu")).run(30, broken)
    with pytest.raises(ValueError, match="at least 1"):
        MicroBatch(0, torch.device("cpu"))


def test_black_is_the_image_times_the_mask_before_normalisation(images):
    transform = ModelTransform(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    masks = torch.rand(2, 8, 8)
    query = Query(torch.nn.Identity(), transform.normalise(pixels), transform=transform)
    mean, std = torch.tensor(transform.mean).view(3, 1, 1), torch.tensor(transform.std).view(3, 1, 1)
    expected = (pixels / 255 * masks[:, None] - mean) / std
    torch.testing.assert_close(query.mask(query.images, masks, "black"), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="mean or black"):
        query.hidden("grey")


def test_rise_is_the_weighted_mean_of_its_masks(pooled_net, images):
    found = explain(pooled_net, images, [0, 1, 4], "rise:masks=9,cells=4,keep=0.3", seed=5)[
        "rise:masks=9,cells=4,keep=0.3"
    ]
    grids, shifts = random_masks(9, (32, 32), 4, 0.3, torch.Generator().manual_seed(5))
    assert set(grids.unique().tolist()) == {0, 1} and shifts.max() < 8
    masks = grow(grids, shifts, (32, 32))
    for b, target in enumerate([0, 1, 4]):
        total = 0
        for mask in masks:
            with torch.no_grad():
                total = total + pooled_net((images[b] * mask)[None]).softmax(1)[0, target] * mask
        torch.testing.assert_close(found[b], total / (9 * 0.3), rtol=1e-4, atol=1e-5)


def test_rise_masks_show_each_pixel_with_the_asked_probability():
    grids, shifts = random_masks(3000, (30, 50), 5, 0.4, torch.Generator().manual_seed(0))
    masks = grow(grids, shifts, (30, 50))
    assert masks.shape == (3000, 30, 50) and masks.min() >= 0 and masks.max() <= 1 + 1e-6
    torch.testing.assert_close(masks.mean(0), torch.full((30, 50), 0.4), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("size", "cells", "up"),
    [((224, 224), 8, (252, 252)), ((30, 50), 7, (40, 64)), ((5, 7), 2, (9, 12)), ((9, 4), 1, (18, 8))],
)
def test_rise_masks_are_grids_enlarged_over_a_mirrored_border_and_cut(size, cells, up):
    """The authors' `resize(grid, up, order=1, mode="reflect")`, which mirrors the grid about its border cells."""
    generator = torch.Generator().manual_seed(0)
    grids, shifts = random_masks(5, size, cells, 0.5, generator)
    shifts[0], shifts[1] = 0, torch.tensor(up) - torch.tensor(size)  # both borders
    masks = grow(grids, shifts, size)
    places = np.meshgrid(*((np.arange(n) + 0.5) * cells / n - 0.5 for n in up), indexing="ij")
    for grid, (y, x), mask in zip(grids.numpy(), shifts.tolist(), masks):
        large = map_coordinates(grid, places, order=1, mode="mirror")
        np.testing.assert_allclose(mask, large[y : y + size[0], x : x + size[1]], atol=1e-5)


def test_occlusion_is_the_mean_drop_over_the_patches_that_cover_a_pixel(pooled_net, images):
    method = "occlusion:window=12,stride=9"
    found = explain(pooled_net, images[:1], 1, method)[method][0]
    total, count = torch.zeros(32, 32), torch.zeros(32, 32)
    with torch.no_grad():
        whole = pooled_net(images[:1])[0, 1]
        for y in (0, 9, 18, 20):  # 18 leaves two pixels, so that the last patch ends at the border
            for x in (0, 9, 18, 20):
                hidden = images[:1].clone()
                hidden[:, :, y : y + 12, x : x + 12] = 0
                total[y : y + 12, x : x + 12] += whole - pooled_net(hidden)[0, 1]
                count[y : y + 12, x : x + 12] += 1
    torch.testing.assert_close(found, total / count)


def test_occlusion_finds_the_only_patch_that_counts(images):
    class Spot(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 9, 20], -x[:, 0, 9, 20]], 1)

    method = "occlusion:window=4,stride=4"
    found = explain(Spot(), images, 0, method)[method]
    expected = torch.zeros(3, 32, 32)
    expected[:, 8:12, 20:24] = images[:, 0, 9, 20, None, None]
    torch.testing.assert_close(found, expected)
    uneven = explain(Spot(), images[:, :, :30, :27], 0, "occlusion:window=8,stride=5")
    assert all(m.isfinite().all() for m in uneven.values())
    with pytest.raises(UserError, match="stride"):
        explain(Spot(), images, 0, "occlusion:window=4,stride=5")


def test_controls(images):
    class Net(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    maps = explain(Net(), images[:, :, :, :24], 0, ["fake_cam", "centre", "random"])
    assert maps["fake_cam"].sum((1, 2)).tolist() == [32 * 24 - 1] * 3 and (maps["fake_cam"][:, 0, 0] == 0).all()
    assert maps["centre"][0].argmax() in (15 * 24 + 11, 15 * 24 + 12, 16 * 24 + 11, 16 * 24 + 12)
    torch.testing.assert_close(maps["centre"], maps["centre"].flip(1, 2))
    y, x = 7.5 / 32 - 0.5, 11.5 / 24 - 0.5
    assert maps["centre"][0, 7, 11].item() == pytest.approx(math.exp(-(y**2 + x**2) / (2 * 0.25**2)))
    assert not torch.equal(maps["random"][0], maps["random"][1])
