"""Model surgery: put DCLS layers in the place of a model's convolutions, fold them back, look after positions."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from common.dcls import INTERPOLATIONS, DclsConv2d, depthwise_conv2d, plain_depthwise_conv2d, row_axis

DEPTHWISE_WAYS = ("auto", "conv2d", "triton")


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels == conv.out_channels > 1 and conv.kernel_size != (1, 1)


SELECTION_RULES: dict[str, Callable[[nn.Conv2d], bool]] = {
    "depthwise": _is_depthwise,
    "depthwise_7x7": lambda conv: _is_depthwise(conv) and conv.kernel_size == (7, 7),
    "3x3": lambda conv: conv.kernel_size == (3, 3),
}
"""Which convolutions the study replaces: `depthwise` in ConvNeXt and MetaFormer, `depthwise_7x7` in FastViT
(its 3x3 RepMixer and its strided large kernels stay), `3x3` in ResNet."""

WEIGHT_INITS: dict[str, Callable[[Tensor], object]] = {
    "normal": lambda weight: nn.init.normal_(weight, std=0.02),
    "trunc_normal": lambda weight: nn.init.trunc_normal_(weight, std=0.02),
    "kaiming": lambda weight: None,  # what the layer was made with
}


@dataclass(frozen=True)
class DclsSpec:
    """How a model's convolutions become DCLS layers."""

    interpolation: str
    """`v0`, `v1`, `max` or `gauss`."""
    dilated_kernel_size: int
    """Side of the dense kernel in pixels."""
    kernel_count: int
    """Elements a kernel has."""
    rule: str = "depthwise"
    """Which convolutions: a key of `SELECTION_RULES`."""
    share_positions: bool = True
    """One P (and SIG) for all layers of a stage."""
    weight_init: str = "normal"
    """A key of `WEIGHT_INITS`."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("rule", self.rule, tuple(SELECTION_RULES)),
            ("weight_init", self.weight_init, tuple(WEIGHT_INITS)),
        ):
            if value not in known:
                raise ValueError(f"DclsSpec.{name} is {value!r}; take one of {', '.join(known)}")
        for name, number in (
            ("dilated_kernel_size", self.dilated_kernel_size),
            ("kernel_count", self.kernel_count),
        ):
            if number < 1:
                raise ValueError(f"DclsSpec.{name} is {number}; it must be at least 1")


def _replacement(conv: nn.Conv2d, spec: DclsSpec) -> DclsConv2d:
    assert not isinstance(conv.padding, str)
    # The padding grows with the kernel, so that the map keeps its size and its alignment.
    padding = tuple(p + spec.dilated_kernel_size // 2 - k // 2 for p, k in zip(conv.padding, conv.kernel_size))
    layer = DclsConv2d(
        conv.in_channels,
        conv.out_channels,
        spec.kernel_count,
        (conv.stride[0], conv.stride[1]),
        (padding[0], padding[1]),
        spec.dilated_kernel_size,
        conv.groups,
        conv.bias is not None,
        conv.padding_mode,
        spec.interpolation,
    )
    WEIGHT_INITS[spec.weight_init](layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer.to(conv.weight.device, conv.weight.dtype).train(conv.training)


def replace_convs(model: nn.Module, spec: DclsSpec) -> list[str]:
    """Replace, in place, the convolutions that `spec.rule` selects by freshly initialised DCLS layers.

    Stride, groups and the presence of a bias are kept. A stage is a run of replaced layers, in the order of
    `named_modules`, whose positions have one shape: this gives the stages of all eight models of the study.

    Returns:
        The names of the replaced layers, in order.

    Raises:
        ValueError: the rule selects nothing in this model, or a layer is dilated already.
    """
    selected = SELECTION_RULES[spec.rule]
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and selected(m)]
    if not names:
        raise ValueError(f"rule {spec.rule!r} selects no convolution of {type(model).__name__}")
    stage_head: DclsConv2d | None = None
    for name in names:
        conv = model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        if conv.dilation != (1, 1) or isinstance(conv.padding, str):
            raise ValueError(f"{name}: dilation {conv.dilation}, padding {conv.padding!r} cannot be replaced by DCLS")
        layer = _replacement(conv, spec)
        if spec.share_positions:
            if stage_head is not None and stage_head.P.shape == layer.P.shape:
                layer.P, layer.SIG = stage_head.P, stage_head.SIG
            else:
                stage_head = layer
        model.set_submodule(name, layer)
    return names


def set_depthwise(model: nn.Module, way: str) -> None:
    """Choose how the depthwise DCLS layers of a model are computed.

    `auto`: `common.dcls.depthwise_conv2d`, with a backward pass of our own on a CPU; `conv2d`: `F.conv2d` everywhere;
    `triton`: the kernels of `common.depthwise_triton` on a GPU, elsewhere as `auto`.

    Raises:
        ValueError: an unknown way, or `triton` where Triton is not installed.
    """
    if way not in DEPTHWISE_WAYS:
        raise ValueError(f"depthwise {way!r} is unknown; take one of {', '.join(DEPTHWISE_WAYS)}")
    if way == "triton":
        if importlib.util.find_spec("triton") is None:
            raise ValueError("depthwise 'triton' needs the package triton (pip install triton); take auto without it")
        from common.depthwise_triton import triton_depthwise_conv2d as convolve
    else:
        convolve = depthwise_conv2d if way == "auto" else plain_depthwise_conv2d
    for layer in model.modules():
        if isinstance(layer, DclsConv2d):
            layer.depthwise = convolve


def fold_dcls(model: nn.Module) -> nn.Module:
    """Replace, in place, every DCLS layer by the plain convolution of the same function; returns the model."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, DclsConv2d):
            model.set_submodule(name, layer.fold())
    return model


@dataclass
class PositionGroup:
    """One distinct position tensor and the layers that share it."""

    name: str
    """Name of P in the first layer, as `named_parameters` gives it."""
    positions: nn.Parameter
    """P, (2, Cout, Cin/g, k), in pixels."""
    sigma: nn.Parameter | None
    """SIG, of the same shape, or None."""
    layers: list[tuple[str, DclsConv2d]] = field(default_factory=list)
    """Name and layer of each user of P."""

    def rows_columns(self) -> tuple[Tensor, Tensor]:
        """Row and column of every element, each (Cout, Cin/g, k), in pixels from the centre, detached."""
        axis = row_axis(self.layers[0][1].interpolation)
        return self.positions[axis].detach(), self.positions[1 - axis].detach()


def position_groups(model: nn.Module) -> list[PositionGroup]:
    """Every distinct position tensor of a model, once, in the order of its first layer (empty without DCLS)."""
    groups: dict[int, PositionGroup] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, DclsConv2d):
            group = groups.setdefault(id(layer.P), PositionGroup(f"{name}.P", layer.P, layer.SIG))
            group.layers.append((name, layer))
    return list(groups.values())


def clamp_positions(model: nn.Module) -> None:
    """Bring the positions of every DCLS layer back to within +-(K // 2); to be called after each update."""
    for group in position_groups(model):
        group.layers[0][1].clamp_parameters()


def repulsive_loss(model: nn.Module) -> Tensor:
    """L_rep of the DCLS ConvNeXt training code: how much elements of one kernel lie within a pixel of each other.

    For each distinct P: 2 / (k (k-1) Cout Cin/g) * sum over channels and pairs i < j of
    max(0, 1 - ||p_i - p_j||_2); averaged over the distinct P's. The study adds its square to the loss.

    Returns:
        A scalar between 0 (all at least one pixel apart) and 1, with gradient to the positions.

    Raises:
        ValueError: the model has no DCLS layer with two or more elements.
    """
    terms = []
    for group in position_groups(model):
        positions = group.positions.float()
        count = positions.shape[-1]
        if count < 2:
            continue
        first, second = torch.triu_indices(count, count, 1, device=positions.device)
        distance = torch.linalg.vector_norm(positions[..., first] - positions[..., second], dim=0)
        terms.append((1 - distance).relu().mean())
    if not terms:
        raise ValueError("the repulsive loss needs DCLS layers with at least two elements; this model has none")
    return torch.stack(terms).mean()
