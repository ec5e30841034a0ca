"""The named models: the eight of the study with their DCLS twins, the demo pair, and any timm classifier.

Facts of the study (arXiv 2408.03164, published evaluation code): interpolation, dilated kernel size and
kernel count of each model, the layers replaced, the transform and the layer that is explained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import timm
import timm.data
from torch import nn

from common.dcls_spec import DclsSpec
from common.errors import UserError, did_you_mean, first_line
from common.model_arguments import check_arguments
from common.models.demo_net import DemoNet
from common.models.transform import ModelTransform
from common.surgery import Replaced, replace_convs

ZENODO = "https://zenodo.org/records"


@dataclass(frozen=True)
class PublishedFile:
    """A checkpoint file of the authors."""

    url: str
    """Where it is published."""
    key: str
    """Entry of the file that holds the state dict."""
    size: int | None = None
    """Bytes, once known."""
    sha256: str | None = None
    """Of the file, in hexadecimal, once known."""
    swapped_axes: bool = False
    """P (and SIG) hold row and column the other way round than `common.dcls.row_axis` says, as v0 files of
    dcls 0.0.1 to 0.0.5 do. Nothing in a file tells; none of the authors' files listed here is such a one."""


@dataclass(frozen=True)
class ZooModel:
    """One named model."""

    name: str
    """The name people type."""
    architecture: str
    """timm architecture, or `demo_net`."""
    target_layer: str
    """The module whose output `forward_features` gives, by name: what other tools ask for."""
    transform: ModelTransform
    """Preprocessing in the study."""
    tags: tuple[str, ...] = ()
    """timm weight tags of the plain model, that of the study first. Explicit, since timm's defaults change."""
    dcls: DclsSpec | None = None
    """Its surgery, or None for a plain model."""
    published: PublishedFile | None = None
    """The authors' file, if there is one."""
    num_classes: int = 1000


_CONVNEXT = ModelTransform(256, 224)
_METAFORMER = ModelTransform(224, 224)
_FASTVIT = ModelTransform(256, 256)
_RESNET = ModelTransform(235, 224)
_DEMO = ModelTransform(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

_PLAIN = (
    ZooModel("resnet50", "resnet50", "layer4", _RESNET, ("a1_in1k", "a3_in1k")),
    ZooModel("convnext_t", "convnext_tiny", "stages", _CONVNEXT, ("fb_in1k",)),
    ZooModel("convnext_s", "convnext_small", "stages", _CONVNEXT, ("fb_in1k",)),
    ZooModel("convnext_b", "convnext_base", "stages", _CONVNEXT, ("fb_in1k",)),
    ZooModel("caformer_s18", "caformer_s18", "stages", _METAFORMER, ("sail_in1k",)),
    ZooModel("convformer_s18", "convformer_s18", "stages", _METAFORMER, ("sail_in1k",)),
    ZooModel("fastvit_sa24", "fastvit_sa24", "final_conv", _FASTVIT, ("apple_in1k", "apple_dist_in1k")),
    ZooModel("fastvit_sa36", "fastvit_sa36", "final_conv", _FASTVIT, ("apple_in1k", "apple_dist_in1k")),
    ZooModel("demo", "demo_net", "stages", _DEMO, num_classes=12),
)

# name of the plain twin -> surgery and published file
_DCLS: dict[str, tuple[DclsSpec, PublishedFile | None]] = {
    "resnet50": (
        DclsSpec("v0", 7, 5, "3x3", weight_init="kaiming"),
        PublishedFile(f"{ZENODO}/8373830/files/resnet_dcls_kernel_5_model_best.pth.tar", "state_dict_ema"),
    ),
    "convnext_t": (
        DclsSpec("v0", 17, 34, weight_init="trunc_normal"),
        PublishedFile(f"{ZENODO}/7112021/files/convnext_dcls_tiny_1k_224_ema.pth", "model"),
    ),
    "convnext_s": (
        DclsSpec("v0", 17, 40, weight_init="trunc_normal"),
        PublishedFile(f"{ZENODO}/7112021/files/convnext_dcls_small_1k_224_ema.pth", "model"),
    ),
    "convnext_b": (
        DclsSpec("v0", 17, 40, weight_init="trunc_normal"),
        PublishedFile(f"{ZENODO}/7112021/files/convnext_dcls_base_1k_224_ema.pth", "model"),
    ),
    "caformer_s18": (
        DclsSpec("v1", 17, 34),
        PublishedFile(f"{ZENODO}/8370737/files/caformer_s18_v1_17lim_34el_seed0.pth.tar", "state_dict_ema"),
    ),
    "convformer_s18": (
        DclsSpec("v1", 17, 40),
        PublishedFile(f"{ZENODO}/8370737/files/convformer_s18_v1_17lim_40el_seed0.pth.tar", "state_dict_ema"),
    ),
    "fastvit_sa24": (
        DclsSpec("v1", 17, 34, "depthwise_7x7"),
        PublishedFile(f"{ZENODO}/8370737/files/fastvit_sa24_v1_17lim_34el_seed0.pth.tar", "state_dict_ema"),
    ),
    "fastvit_sa36": (
        DclsSpec("v1", 17, 34, "depthwise_7x7"),
        PublishedFile(f"{ZENODO}/8370737/files/fastvit_sa36_v1_17lim_34el_seed0.pth.tar", "state_dict_ema"),
    ),
    "demo": (DclsSpec("v1", 11, 24), None),
}


def _build_zoo() -> dict[str, ZooModel]:
    zoo = {}
    for plain in _PLAIN:
        zoo[plain.name] = plain
        spec, published = _DCLS[plain.name]
        twin = replace(plain, name=f"{plain.name}_dcls", dcls=spec, published=published, tags=())
        zoo[twin.name] = twin
    gauss_file = PublishedFile(f"{ZENODO}/8029747/files/convnext_dcls_gauss_tiny_1k_224_ema.pth", "model")
    zoo["convnext_t_dcls_gauss"] = replace(
        zoo["convnext_t_dcls"],
        name="convnext_t_dcls_gauss",
        dcls=DclsSpec("gauss", 23, 26, weight_init="trunc_normal"),
        published=gauss_file,
    )
    return zoo


ZOO: dict[str, ZooModel] = _build_zoo()
"""Every named model."""

STUDY_MODELS = tuple(name for name in ZOO if not name.startswith("demo") and name != "convnext_t_dcls_gauss")
"""The sixteen models of the study, each plain one before its twin."""


def lookup(name: str) -> ZooModel:
    """The zoo's entry of a name, or one made on the spot for `timm:ARCHITECTURE[.TAG]`.

    Raises:
        UserError: neither the zoo nor timm knows the name; the nearest known names are given.
    """
    if name in ZOO:
        return ZOO[name]
    if not name.startswith("timm:"):
        hint = did_you_mean(name, ZOO)
        raise UserError(f"unknown model {name!r}; {hint} - any timm classifier is taken as timm:ARCHITECTURE.")
    architecture, _, tag = name.removeprefix("timm:").partition(".")
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models(), 5)
        raise UserError(f"timm has no architecture {architecture!r}; {hint}")
    known_tags = [full.partition(".")[2] for full in timm.list_pretrained(architecture)]
    if tag and tag not in known_tags:
        raise UserError(f"timm has no weights {tag!r} for {architecture}; known: {', '.join(known_tags)}")
    cfg = timm.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    data = timm.data.resolve_data_config({}, pretrained_cfg=cfg.to_dict() if cfg else {})
    crop = data["input_size"][1]
    if data["crop_mode"] not in ("center", "squash"):
        raise UserError(
            f"{name} wants pictures brought to {crop} px by crop_mode {data['crop_mode']!r}; only center and squash "
            "are offered, with which its scores would be others"
        )
    transform = ModelTransform(
        int(crop / data["crop_pct"]),
        crop,
        data["interpolation"],
        tuple(data["mean"]),
        tuple(data["std"]),
        data["crop_mode"] == "squash",
    )
    return ZooModel(name, architecture, "", transform, (tag,) if tag else tuple(known_tags[:1]))


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    dcls: DclsSpec | None = None,
    pretrained: bool = False,
    **model_args: Any,
) -> nn.Module:
    """Build a named model, with its DCLS surgery, in training mode.

    Args:
        name: a name of `ZOO` or `timm:ARCHITECTURE[.TAG]`.
        num_classes: outputs; the zoo's number by default.
        dcls: surgery to apply instead of the zoo's.
        pretrained: load the plain model's weights from the hub by the explicit tag, before any surgery; those of
            replaced layers are kept with `init="preserve"` only.
        model_args: passed to the architecture, such as `drop_path_rate`; those of `common.model_arguments` only.

    Returns:
        A model with timm's interface: `forward_features` (B, 3, H, W) -> last feature map,
        `forward_head` of that -> logits (B, num_classes).

    Raises:
        UserError: unknown name, arguments the architecture does not take, weights that cannot be fetched, surgery
            that cannot be done.
    """
    model = create_plain(name, num_classes, pretrained=pretrained, **model_args)
    spec = dcls or lookup(name).dcls
    if spec is not None:
        operate(model, spec, name)
    return model


def operate(model: nn.Module, spec: DclsSpec, name: str) -> Replaced:
    """`replace_convs` of a named model.

    Raises:
        UserError: the surgery cannot be done.
    """
    try:
        return replace_convs(model, spec)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def create_plain(
    name: str, num_classes: int | None = None, *, pretrained: bool = False, **model_args: Any
) -> nn.Module:
    """A named model before any surgery; see `create_model`."""
    entry = lookup(name)
    check_arguments(model_args, name)
    classes = entry.num_classes if num_classes is None else num_classes
    if entry.architecture == "demo_net" and pretrained:
        raise UserError(f"{name} has no weights on the hub; its checkpoint is checkpoints/{name}")
    # A DCLS twin starts from the weights of its plain model.
    tags = entry.tags or next((plain.tags for plain in _PLAIN if plain.architecture == entry.architecture), ())
    weights = f"{entry.architecture}.{tags[0]}" if pretrained and tags else entry.architecture
    try:
        if entry.architecture == "demo_net":
            model: nn.Module = DemoNet(num_classes=classes, **model_args)
        else:
            model = timm.create_model(weights, pretrained=pretrained, num_classes=classes, **model_args)
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        if pretrained and isinstance(error, OSError | RuntimeError):
            raise UserError(
                f"{name}: the weights {weights} could not be fetched ({reason}). Without a "
                f"connection, give a local file: --ckpt FILE --model {name}, or init_from=FILE to train from it"
            ) from error
        if not model_args:
            raise
        raise UserError(f"{name}: the architecture refuses its arguments {model_args} ({reason})") from error
    return model


def crashes_channels_last(model: nn.Module) -> bool:
    """Whether a CPU's backward pass may crash in channels_last: a strided 1x1 convolution of few channels.

    oneDNN (torch 2.15) writes beyond its memory in the weight gradient of FastViT's first 1x1 convolution, seen
    with 3, 4 and 8 channels, stride 2, 256 px; not with 16 or more channels, nor in the contiguous layout.
    """
    return any(
        isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.stride != (1, 1) and m.in_channels < 16
        for m in model.modules()
    )
