"""Every family of timm classifiers is explained without being told anything about it; weights are random."""

import pytest
import timm
import torch
from PIL import Image

from common.errors import UserError
from common.models.zoo import STUDY_MODELS, create_model, lookup
from evaluate.explainers.explain import explain
from evaluate.explainers.full_grad import decompose
from evaluate.explainers.registry import EXPLAINERS
from evaluate.network.passes import layer_pass
from evaluate.network.query import Query

GRADIENT = [name for name, e in EXPLAINERS.items() if e.family == "gradient"]
FEW = ["grad_cam", "threshold_grad_cam", "layer_cam", "eigen_cam"]

# architecture, arguments, image size, grid of the default map
FAMILIES = [
    ("vit_small_patch16_224", {"img_size": 64}, 64, (4, 4)),
    ("vit_tiny_patch16_224", {"img_size": (64, 96)}, (64, 96), (4, 6)),
    ("deit_tiny_distilled_patch16_224", {"img_size": 64}, 64, (4, 4)),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 2}, 56, (4, 4)),
    ("vit_base_patch16_siglip_224", {"img_size": 64, "depth": 2}, 64, (4, 4)),
    ("beit_base_patch16_224", {"img_size": 64, "depth": 2}, 64, (4, 4)),
    ("cait_xxs24_224", {"img_size": 64, "depth": 2}, 64, (4, 4)),
    ("xcit_nano_12_p16_224", {}, 64, (4, 4)),
    ("mixer_s16_224", {"img_size": 64}, 64, (4, 4)),
    ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2}, 64, (2, 2)),
    ("swinv2_tiny_window8_256", {"img_size": 64, "window_size": 2}, 64, (2, 2)),
    ("efficientnet_b0", {}, 64, (2, 2)),
    ("mobilenetv3_large_100", {}, 64, (2, 2)),
    ("mobilenetv2_100", {}, (64, 96), (2, 3)),
    ("vgg16_bn", {}, 64, (2, 2)),
    ("regnety_002", {}, 64, (2, 2)),
    ("maxvit_tiny_rw_224", {"img_size": 64}, 64, (2, 2)),
    ("densenet121", {}, 64, (2, 2)),
    ("inception_v3", {}, 96, (1, 1)),
    ("resnetv2_50", {}, 64, (2, 2)),
    ("poolformer_s12", {}, 64, (2, 2)),
    ("pvt_v2_b0", {}, 64, (2, 2)),
    ("levit_128s", {"img_size": 64}, 64, (1, 1)),
]


def built(architecture: str, arguments: dict):
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=7, **arguments).eval()
    if architecture.startswith("mixer"):  # begins with a head of zeros
        torch.nn.init.normal_(model.head.weight)
    return model


@pytest.mark.parametrize(("architecture", "arguments", "size", "grid"), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_default_maps(architecture, arguments, size, grid):
    model = built(architecture, arguments)
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(2, 3, height, width)
    own = explain(model, images, [1, None], GRADIENT, size="own", form="raw")
    with torch.no_grad():
        torch.testing.assert_close(own.logits, model(images), rtol=1e-3, atol=1e-4)
    for name in GRADIENT:
        assert own[name].shape == (2, *grid), name
    assert own["hires_cam"].abs().amax() > 0
    if grid != (1, 1):
        assert not own.degenerate["hires_cam"].any() and not own.degenerate["eigen_cam"].any()
    assert explain(model, images, 1, FEW)["grad_cam"].shape == (2, height, width)


@pytest.mark.parametrize(
    ("architecture", "arguments", "layer", "grid"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2}, "layers.1.blocks.0.norm1", (8, 8)),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2}, "layers.2", (4, 4)),
        ("convnext_atto", {}, "stages.2.blocks.0", (4, 4)),
        ("convnext_atto", {}, "stages.2.blocks.0.norm", (4, 4)),
        ("convnext_tiny", {}, "stages.1.blocks.0.norm", (8, 8)),  # channels last within the block
        ("vit_tiny_patch16_224", {"img_size": 64}, "blocks.3.mlp.fc1", (4, 4)),
        ("maxvit_tiny_rw_224", {"img_size": 64}, "stages.1", (8, 8)),
        ("vgg16_bn", {}, "features.42", (4, 4)),
        ("resnet18", {}, "layer2", (8, 8)),
    ],
)
def test_named_layers(architecture, arguments, layer, grid):
    model, images = built(architecture, arguments), torch.randn(2, 3, 64, 64)
    found = explain(model, images, [1, None], GRADIENT, layer=layer, size="own", form="raw")
    assert found["hires_cam"].shape == (2, *grid) and not found.degenerate["hires_cam"].any()
    # First-order change of the score when the map is scaled: what the gradient at the right places gives.
    passed = layer_pass(model, images[:1], layer, 1)

    def scaled(_module, _args, output, by=1e-3):
        return output * (1 + by)

    with torch.no_grad():
        before = model.double()(images[:1].double())[0, 1]
        handle = model.get_submodule(layer).register_forward_hook(scaled)
        after = model(images[:1].double())[0, 1]
        handle.remove()
    if passed.layout.prefix == 0:
        expected = 1e-3 * (passed.features * passed.gradients).sum().item()
        assert (after - before).item() == pytest.approx(expected, rel=0.05, abs=1e-7)


@pytest.mark.parametrize(
    ("architecture", "size", "layer", "grid"),
    [
        ("crossvit_tiny_240", 240, "blocks.2.blocks.0.0.norm1", (20, 20)),
        ("crossvit_tiny_240", 240, "blocks.2.blocks.1.3.norm1", (14, 14)),  # sees the image at 224
        ("volo_d1_224", 224, "network.4.1.norm1", (14, 14)),
        ("tnt_s_patch16_224", 224, "blocks.11.norm_out", (14, 14)),
        ("coat_tiny", 224, "serial_blocks4.1.norm1", (7, 7)),
        ("pit_ti_224", 224, "transformers.2.blocks.3.norm1", (7, 7)),
        ("xcit_nano_12_p16_224", 224, None, (14, 14)),
        ("mobilevit_xxs", 256, None, (8, 8)),
        ("levit_128s", 224, "stages.0", (14, 14)),  # it then shrinks the map by attention alone
        ("edgenext_xx_small", 256, None, (8, 8)),
        ("mvitv2_tiny", 224, None, (7, 7)),
        ("maxvit_rmlp_pico_rw_256", 256, None, (8, 8)),
    ],
)
def test_a_change_of_the_image_shows_at_its_place_in_the_map(architecture, size, layer, grid):
    """By default, or at a named layer of models whose head sees the class token only, which are refused without."""
    model, images = built(architecture, {}), torch.randn(4, 3, size, size)
    if any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()):
        model.train()(images)  # as after training; before, signals fade from layer to layer
        model.eval()
    if model.global_pool == "token" and layer is not None:
        with pytest.raises(UserError, match=r"class token only; name the layer to explain \(layer="):
            explain(model, images[:1])
    changed = images[:2].clone()
    changed[:, :, : size // 4, -size // 4 :] += 3
    first, second = (Query(model, x, [1, 2], layer).features for x in (images[:2], changed))
    assert first.shape[2:] == grid
    change = (second - first).square().sum(1)
    for image in change:
        row, column = divmod(int(image.argmax()), grid[1])
        assert row < grid[0] / 2 <= column
    maps = explain(model, images[:2], [1, 2], FEW, layer=layer, form="raw")
    for name in ("layer_cam", "eigen_cam"):
        assert maps[name].shape == (2, size, size) and not maps.degenerate[name].any(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDY_MODELS)
def test_models_of_the_study(name):
    torch.manual_seed(0)
    model = create_model(name, num_classes=10).eval()
    size = 64 if "dcls" not in name else 96
    maps = explain(model, torch.randn(1, 3, size, size), None, GRADIENT, form="raw")
    assert all(m.shape == (1, size, size) for m in maps.values()) and not maps.degenerate["hires_cam"].any()


@pytest.mark.parametrize("name", ["convnext_t_dcls", "fastvit_sa24", "demo_dcls"])
def test_some_models_of_the_zoo(name):
    torch.manual_seed(0)
    model = create_model(name).eval()
    maps = explain(model, torch.randn(1, 3, 64, 64), None, FEW, form="raw")
    assert all(m.shape == (1, 64, 64) for m in maps.values())


def test_explainers_of_the_last_map_agree_on_the_real_mobilenet(shared_data):
    """Behind pooling and a linear layer Grad-CAM, XGrad-CAM and HiResCAM are one map (as in Opti-CAM's tables)."""
    weights = shared_data / "weights" / "mobilenetv2_100_same.pth"
    model = timm.create_model("mobilenetv2_100", pad_type="same")
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    transform = lookup("timm:mobilenetv2_100").transform
    names = sorted((shared_data / "imagenet_val").iterdir())[:4]
    pixels = torch.stack([transform.geometry()(Image.open(name).convert("RGB")) for name in names])
    maps = explain(model, transform.normalise(pixels), None, ["grad_cam", "xgrad_cam", "hires_cam"], size="own")
    peaks = {name: m / m.amax((1, 2), keepdim=True) for name, m in maps.items()}
    torch.testing.assert_close(peaks["grad_cam"], peaks["hires_cam"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(peaks["xgrad_cam"], peaks["hires_cam"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ["convnext_tiny", "maxvit_tiny_rw_224"])
def test_full_grad_takes_linear_layers_between_the_channels_last_for_what_they_are(architecture):
    model = built(architecture, {"img_size": 64} if "maxvit" in architecture else {"depths": (1, 1, 1, 1)})
    images = torch.randn(2, 3, 64, 64)
    parts = decompose(Query(model, images, [1, 2]))
    assert any(term.ndim == 4 for term in parts.linear_terms) and parts.total().shape == (2,)
    channels = {m.out_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)}
    channels |= {m.num_features for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert parts.bias_terms and {term.shape[1] for term in parts.bias_terms} <= channels
    assert explain(model, images, [1, 2], "full_grad")["full_grad"].shape == (2, 64, 64)
