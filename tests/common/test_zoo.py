"""The zoo: the study's parameter counts, explicit weight tags, target layers, folding of every DCLS model."""

import pytest
import timm
import torch
from PIL import Image

from common.dcls_spec import DclsSpec
from common.errors import UserError
from common.models.zoo import STUDY_MODELS, ZOO, crashes_channels_last, create_model, lookup
from common.surgery import fold_dcls, position_groups

PARAMETERS = {  # measured on timm models with the study's surgery, one P a stage
    "resnet50": (25_557_032, 24_008_744),
    "convnext_t": (28_589_128, 28_587_688),
    "convnext_s": (50_223_688, 50_217_064),
    "convnext_b": (88_591_464, 88_582_632),
    "caformer_s18": (26_341_656, 26_350_488),
    "convformer_s18": (26_774_448, 26_848_432),
    "fastvit_sa24": (21_554_216, 21_523_496),
    "fastvit_sa36": (31_527_464, 31_452_584),
}
STAGES = {"caformer_s18_dcls": 2}  # attention stages have no convolution to replace


def count(name: str) -> int:
    with torch.device("meta"):  # shapes only
        return sum(parameter.numel() for parameter in create_model(name).parameters())


def test_names():
    expected = [name for plain in PARAMETERS for name in (plain, f"{plain}_dcls")]
    assert list(STUDY_MODELS) == expected
    assert set(ZOO) == {*expected, "convnext_t_dcls_gauss", "demo", "demo_dcls"}


@pytest.mark.parametrize("plain", PARAMETERS)
def test_parameter_counts_of_the_study(plain):
    assert count(plain) == PARAMETERS[plain][0]
    assert count(f"{plain}_dcls") == PARAMETERS[plain][1]


@pytest.mark.parametrize("plain", PARAMETERS)
def test_one_position_tensor_a_stage(plain):
    with torch.device("meta"):
        groups = position_groups(create_model(f"{plain}_dcls"))
    assert len(groups) == STAGES.get(f"{plain}_dcls", 4)


def test_parameter_count_of_the_gauss_model():
    assert count("convnext_t_dcls_gauss") == 28_586_536


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.dcls])
def test_folding_leaves_the_logits_unchanged(name):
    torch.manual_seed(0)
    model = create_model(name).eval()
    for group in position_groups(model):  # fresh positions lie near the centre; spread them
        torch.nn.init.normal_(group.positions, std=2.0)
    side = 64
    x = torch.randn(1, 3, side, side).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = model(x)
        found = fold_dcls(model)(x)
    assert (found - expected).norm() <= 1e-4 * expected.norm()


# One of each family; the larger siblings run the same code.
@pytest.mark.parametrize("name", [n for n in ZOO if not n.startswith(("convnext_s", "convnext_b", "fastvit_sa36"))])
def test_target_layer_gives_the_last_feature_map(name):
    model = create_model(name).eval()
    seen = {}
    module = model.get_submodule(ZOO[name].target_layer)
    handle = module.register_forward_hook(lambda m, i, o: seen.update(out=o))
    with torch.no_grad():
        features = model.forward_features(torch.randn(1, 3, 64, 64))
        assert torch.equal(model.forward_head(features), model.forward_head(seen["out"]))
    handle.remove()
    assert torch.equal(features, seen["out"]) and features.ndim == 4


def test_weight_tags_exist_in_timm():
    for entry in ZOO.values():
        for tag in entry.tags:
            assert f"{entry.architecture}.{tag}" in timm.list_pretrained(entry.architecture)


def test_every_dcls_model_of_the_study_has_a_published_file():
    for name in STUDY_MODELS:
        entry = lookup(name)
        assert (entry.published is not None) == name.endswith("_dcls")
        assert bool(entry.tags) != name.endswith("_dcls")


def test_timm_names_take_timms_transform():
    entry = lookup("timm:mobilenetv2_100")
    assert (entry.transform.resize, entry.transform.crop, entry.transform.interpolation) == (256, 224, "bicubic")
    assert not entry.transform.squash


def test_a_squashed_picture_is_what_timm_makes_of_it():
    architecture = "eva02_base_patch14_448"
    cfg = timm.get_pretrained_cfg(architecture)
    assert cfg.crop_mode == "squash"
    entry = lookup(f"timm:{architecture}")
    given = {"interpolation": cfg.interpolation, "crop_pct": cfg.crop_pct, "crop_mode": cfg.crop_mode}
    theirs = timm.data.create_transform(cfg.input_size, False, normalize=False, **given)
    pixels = torch.randint(0, 256, (30, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(pixels.numpy())
    assert torch.equal(entry.transform.geometry()(picture), theirs(picture))
    assert entry.transform.field_of_view(30, 50) == (0, 0, 50, 30)


@pytest.mark.parametrize(
    "name,message",
    [
        ("convnext_b_dlcs", "did you mean convnext_b_dcls"),
        ("timm:mobilenetv2_10", "did you mean mobilenetv2_1"),
        ("timm:resnet50.a9_in1k", r"no weights 'a9_in1k'.*a1_in1k"),
    ],
)
def test_a_wrong_name_gets_the_nearest_right_one(name, message):
    with pytest.raises(UserError, match=message):
        create_model(name)


@pytest.mark.parametrize("name", ["convnext_t", "demo"])
def test_arguments_the_architecture_does_not_take(name):
    with pytest.raises(UserError, match=rf"{name}.*no_such"):
        create_model(name, no_such=1)


@pytest.mark.parametrize("name", ["convnext_t", "convnext_t_dcls"])
def test_a_pretrained_network_keeps_its_function_if_asked(name, monkeypatch):
    """The hub's weights are the plain model's of the study, whichever of the twins is built."""
    asked = []

    def without_a_hub(weights, pretrained, **arguments):
        asked.append((weights, pretrained))
        torch.manual_seed(7)
        return build(weights, **arguments, depths=(1, 1, 1, 1))

    build = timm.create_model
    monkeypatch.setattr(timm, "create_model", without_a_hub)
    plain = create_model("convnext_t", pretrained=True).eval()
    model = create_model(name, dcls=DclsSpec("v1", 17, 49, init="preserve"), pretrained=True).eval()
    assert asked == [("convnext_tiny.fb_in1k", True)] * 2
    assert len(position_groups(model)) == 4
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = plain(x)
        assert (model(x) - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    "spec,message",
    [
        (DclsSpec("v1", 9, 4, "3x3"), "convnext_t: rule '3x3' selects no convolution of ConvNeXt"),
        (DclsSpec("v1", 5, 4, init="preserve"), "convnext_t: stages.0.blocks.0.conv_dw: its kernel covers 7x7"),
    ],
)
def test_a_surgery_that_cannot_be_done_is_told_to_the_user(spec, message):
    with pytest.raises(UserError, match=message):
        create_model("convnext_t", dcls=spec)


@pytest.mark.parametrize("name", ["fastvit_sa24", "convnext_t_dcls", "resnet50", "caformer_s18"])
def test_only_fastvit_crashes_a_cpu_in_channels_last(name):
    assert crashes_channels_last(create_model(name)) == (name == "fastvit_sa24")
