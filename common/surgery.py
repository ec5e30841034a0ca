"""Model surgery: replace a model's convolutions by DCLS layers, fold them back, clamp and find positions."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from common.dcls import (
    DclsConv2d,
    SamePadding,
    Sides,
    depthwise_conv2d,
    padding_sides,
    plain_depthwise_conv2d,
    row_axis,
)
from common.dcls_spec import WEIGHT_INITS, DclsSpec, Select, selected_convs
from common.preserve import covered, in_plane, preserve

DEPTHWISE_WAYS = ("auto", "conv2d", "triton")


class Replaced(list[str]):
    """Names of the layers that surgery replaced, in order."""

    errors: dict[str, float]
    """With `init="preserve"`, by name: how far a layer's kernels are from the convolution's, in their norm."""

    def __init__(self, names: Sequence[str], errors: dict[str, float]) -> None:
        super().__init__(names)
        self.errors = errors

    @property
    def summary(self) -> str:
        """One line: how many layers, and how far their kernels have moved."""
        if not self.errors:
            return f"{len(self)} convolutions replaced by fresh DCLS layers"
        errors = sorted(self.errors.values())
        worst = max(self.errors, key=self.errors.__getitem__)
        return (
            f"{len(self)} convolutions became DCLS layers of their function; kernels changed by "
            f"{errors[len(errors) // 2]:.1e} of their norm (median), {errors[-1]:.1e} at most ({worst or 'the model'})"
        )


def replace_convs(model: nn.Module, spec: DclsSpec, select: Select | None = None) -> Replaced:
    """Turn, in place, the convolutions that `spec.rule` selects into DCLS layers: all of them, or none in an error.

    Stride, groups and the presence of a bias are kept. The padding, zeros or TensorFlow's `SAME` (timm's
    `Conv2dSame`), grows with the kernel, so that the map keeps its size and the kernel's centre its place. A stage is
    a run of replaced layers, in the order of `named_modules`, whose positions have one shape: this gives the stages
    of all eight models of the study.

    Args:
        model: a module with convolutions, or one `torch.nn.Conv2d` by itself (its name is the empty string).
        spec: the surgery.
        select: takes a convolution's name and the convolution, and says whether to replace it; instead of
            `spec.rule`. A checkpoint keeps such a choice as names: `dataclasses.replace(spec, rule=tuple(names))`.

    Returns:
        The names of the replaced layers, in order, and how far kernels have moved where they were to be preserved.

    Raises:
        ValueError: nothing is selected; a layer is a kind of convolution of its own, whose weights or padding a DCLS
            layer would lose; its kernel or padding does not fit the dilated kernel size.
    """
    convs = selected_convs(model, spec, select)
    layers = {name: _layer(name, conv, spec) for name, conv in convs.items()}
    shapes = [(layer.P.shape if spec.share_positions else name) for name, layer in layers.items()]
    stages = [[name for name, _ in run] for _, run in itertools.groupby(zip(layers, shapes), lambda pair: pair[1])]
    errors: dict[str, float] = {}
    for head, *others in stages:
        for name in others:
            layers[name].P, layers[name].SIG = layers[head].P, layers[head].SIG
        if spec.init == "preserve":
            stage = [head, *others]
            errors |= zip(stage, preserve([layers[name] for name in stage], [convs[name] for name in stage]))
    for name, conv in convs.items():
        _become(conv, layers[name])
    return Replaced(list(convs), errors)


def _layer(name: str, conv: nn.Conv2d, spec: DclsSpec) -> DclsConv2d:
    """A fresh DCLS layer for the place of a convolution.

    Raises:
        ValueError: it would not do what the convolution does.
    """
    own = [n for n, _ in itertools.chain(conv.named_parameters(), conv.named_buffers()) if n not in ("weight", "bias")]
    if type(conv) not in (nn.Conv2d, Conv2dSame) or own:
        kind = f"a {type(conv).__name__}" + (f" with {', '.join(own)}" if own else "")
        raise ValueError(
            f"{name or 'the model'} is {kind}: what it does beyond torch.nn.Conv2d would be lost. Leave it out (a list "
            "of names as DclsSpec.rule, or select=), or put a torch.nn.Conv2d of the same function there first"
        )
    try:
        if spec.init == "preserve":
            in_plane(torch.ones(conv.kernel_size), conv, (spec.dilated_kernel_size, spec.dilated_kernel_size))
        layer = DclsConv2d(
            conv.in_channels,
            conv.out_channels,
            spec.kernel_count,
            (conv.stride[0], conv.stride[1]),
            _padding(conv, spec.dilated_kernel_size),
            spec.dilated_kernel_size,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            spec.interpolation,
        )
    except ValueError as error:
        raise ValueError(f"{name or 'the model'}: {error}; take a larger dilated_kernel_size") from error
    WEIGHT_INITS[spec.weight_init](layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer.to(conv.weight.device, conv.weight.dtype).train(conv.training)


def _padding(conv: nn.Conv2d, size: int) -> Sides | SamePadding:
    """The padding that a kernel of `size` needs for windows with the centres of the convolution's, as many of them."""
    reach = covered(conv)
    if isinstance(conv, Conv2dSame):
        return SamePadding(reach)
    rows, columns = (
        (before + size // 2 - c // 2, after + (size - size // 2) - (c - c // 2))
        for (before, after), c in zip(padding_sides(conv.padding, conv.stride, reach), reach)
    )
    return rows, columns


def _become(module: nn.Module, other: nn.Module) -> None:
    """Turn a module into another in place, as torch's lazy modules do, for all who hold it; so the root can, too."""
    module.__class__ = other.__class__
    module.__dict__ = other.__dict__


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
    """Turn, in place, every DCLS layer into the plain convolution of the same function; returns the model."""
    for layer in list(model.modules()):
        if isinstance(layer, DclsConv2d):
            _become(layer, layer.fold())
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
