"""Saliency maps of any explainers for any classifier, from one shared pass."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.models.transform import ModelTransform
from evaluate.explainers.explainer import Explainer
from evaluate.explainers.registry import EXPLAINERS
from evaluate.maps.arithmetic import is_constant, min_max, resize_saliency
from evaluate.named import Asked
from evaluate.network.micro_batch import MicroBatch
from evaluate.network.passes import uncompiled
from evaluate.network.query import Query
from evaluate.network.targets import Targets

Form = Literal["defined", "raw", "relu", "normalised"]
"""defined: the explainer's own map; raw: signed and unscaled where it has such a form; relu: the positive part of the
defined map; normalised: the defined map scaled to 0..1 (a constant map becomes 0)."""


class Maps(dict[str, Tensor]):
    """Saliency maps (B, H, W) float32 by explainer, never NaN, with what else the pass gave."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        """(B, K) float32 of the unmodified images."""
        self.degenerate: dict[str, Tensor] = {}
        """(B,) bool by explainer: the map is constant, or was not finite (then it is all 0)."""
        self.explainers: dict[str, Explainer] = {}
        """What is known of each explainer, such as `verified`."""
        self.notes: dict[str, str] = {}
        """By explainer, what a reader of its maps must know: its own note, and what it found in this network."""
        self.shared_seconds = 0.0
        """Wall time of the pass that all explainers at the layer share: features, gradients, logits."""
        self.seconds: dict[str, float] = {}
        """Wall time of each explainer's own part."""


def explain(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    methods: Asked[Explainer] = "grad_cam",
    *,
    layer: str | None = None,
    size: tuple[int, int] | Literal["image", "own"] = "image",
    form: Form = "defined",
    transform: ModelTransform | None = None,
    micro_batch: int | MicroBatch | None = None,
    bf16: bool = False,
    seed: int = 0,
    image_keys: Sequence[int] | None = None,
    other_human: Tensor | None = None,
) -> Maps:
    """Explain a batch.

    The model is left as it was: no hook, no gradient, in its former training mode. It may be compiled, frozen or under
    autocast, and the call may stand within `no_grad` or `inference_mode`.

    Args:
        model: any timm classifier; any other one with `layer` given.
        images: (B, 3, H, W), normalised as the model wants.
        targets: (B,) class indices; one class, function of the logits or None (the predicted class) per image;
            or a single one for all.
        methods: see `evaluate.named.Asked` and `EXPLAINERS`. All gradient explainers share one pass.
        layer: name of the layer to explain; None: the last feature map, of class-token transformers the last
            block's first norm.
        size: of the maps, resized bilinearly: (height, width), `image`, or `own`: that of the layer or image, not
            resized.
        form: see `Form`.
        transform: the model's preprocessing; None: what timm says of it. Needed only by Opti-CAM and
            where pixels are hidden in black.
        micro_batch: images at once where an explainer needs many forward passes; halved when memory runs out.
            A `MicroBatch` keeps its size from call to call.
        bf16: features and perturbed images in bfloat16; heads and maps stay float32.
        seed: of the explainers that draw at random.
        image_keys: a number for each image, such as its index in a data set, that seeds its random draws; None: taken
            from its pixels.
        other_human: (B, S, S) human maps of other images, which the control of that name needs.

    Returns:
        `Maps`, a dict {explainer as it was given: (B, H, W)}.

    Raises:
        UserError: unknown explainer, parameter or layer; a model or layer that gives no map.
        ValueError: targets or images of a wrong shape.
    """
    chosen = EXPLAINERS.choose(methods)
    if form not in ("defined", "raw", "relu", "normalised"):
        raise UserError(f"form {form!r}; take defined, raw, relu or normalised")
    if isinstance(micro_batch, int) or micro_batch is None:
        micro_batch = MicroBatch(micro_batch, images.device)
    with undisturbed(model), torch.inference_mode(False):
        images = images.clone() if images.is_inference() else images.detach()
        if isinstance(targets, Tensor) and targets.is_inference():
            targets = targets.clone()
        query = Query(model, images, targets, layer, transform, micro_batch, bf16, seed, image_keys, other_human)
        start = _now(images.device)
        if any(one.entry.at_layer for one in chosen.values()):
            _ = query.activations  # first, as the logits come with it
        maps = Maps(query.logits)
        _ = query.targets  # wrong ones are reported, whatever the explainers
        end = _now(images.device)
        maps.shared_seconds = end - start
        for label, one in chosen.items():
            explainer = one.entry
            given = {**explainer.raw, **one.parameters} if form == "raw" else one.parameters
            query.notes = [explainer.note] if explainer.note else []
            found, degenerate = _flag(explainer(query, **given).detach().float())
            maps.explainers[label], maps.degenerate[label] = explainer, degenerate
            if query.notes:
                maps.notes[label] = "; ".join(query.notes)
            maps[label] = _resize(_form(found, form), size, images)
            start, end = end, _now(images.device)
            if not explainer.needs:  # what is given took none
                maps.seconds[label] = end - start
    return maps


def _now(device: torch.device) -> float:
    """Seconds of a running clock, read when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every module is in the mode it was in."""
    modules = [m for m in uncompiled(model).modules() if m.training]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True


def _flag(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps without NaN or infinity, and which of them are constant or were not finite."""
    finite = maps.isfinite().all(2).all(1)
    maps = torch.where(finite[:, None, None], maps, 0)
    return maps, ~finite | is_constant(maps)


def _form(maps: Tensor, form: Form) -> Tensor:
    if form == "relu":
        return maps.relu()
    return min_max(maps) if form == "normalised" else maps


def _resize(maps: Tensor, size: tuple[int, int] | Literal["image", "own"], images: Tensor) -> Tensor:
    if size == "own":
        return maps
    return resize_saliency(maps, (images.shape[2], images.shape[3]) if size == "image" else size)
