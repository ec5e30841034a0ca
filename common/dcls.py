"""Dilated convolution with learnable spacings (DCLS): the layer and the construction of its dense kernel.

Needs torch and the `dcls` package only and is one file on purpose, long as it is: it can be taken into other code as it
is. Parameters, their names, shapes and initial values are those of `DCLS.construct.modules.Dcls2d` (dcls 0.1.1); the
kernel construction and, on a CPU, the depthwise convolution's backward pass are our own. A kernel is a sum of k bumps,
and every bump is a product of a function of the row and a function of the column. So for each pair of channels the
kernel is one matrix product (K0 x k) @ (k x K1) instead of a sum over tensors of shape (K0, K1, 2, Cout, Cin/g, k);
bilinear bumps touch four pixels only, and on a CPU just those are computed.

Sources: Khalfaoui-Hassani et al., arXiv 2112.03740 (bilinear interpolation), arXiv 2306.00817 (`max`, `gauss`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Never

import torch
import torch.nn.functional as F
from DCLS.construct.modules import _DclsNd
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.utils.weak import WeakIdKeyDictionary

INTERPOLATIONS = ("v0", "v1", "max", "gauss")
_NORMALISATION_EPS = 1e-7
_CACHED_VALUES = 2**17  # of images whose depthwise weight gradient is computed together on a CPU
MIN_SIGMA = {"max": 1.0, "gauss": 0.27}  # added to |SIG|: the narrowest bump, in pixels
# The package starts `max` at SIG = 0, where d|SIG|/dSIG = 0, and so never learns it.
_INITIAL_SIG = {"max": 0.01, "gauss": 0.23}


def row_axis(interpolation: str) -> int:
    """Index along dim 0 of P (and SIG) that holds the row: 0 for `v0`, 1 for `v1`, `max` and `gauss`.

    The convention is that of dcls >= 0.0.6 and of every published v1, max and gauss checkpoint.
    """
    return 0 if interpolation == "v0" else 1


def _bump(position: Tensor, sigma: Tensor | None, size: int, interpolation: str) -> Tensor:
    """One axis of the bumps: (..., k) positions from the centre -> (..., k, size) values at the pixels."""
    pixel = torch.arange(size, device=position.device, dtype=position.dtype)
    centre = (position + size // 2).unsqueeze(-1)
    if interpolation == "v0":
        lower = centre.floor()
        fraction = centre - lower
        return torch.where(pixel == lower, 1 - fraction, 0) + torch.where(pixel == lower + 1, fraction, 0)
    if interpolation == "v1":
        return (1 - (pixel - centre).abs()).relu()
    assert sigma is not None
    width = (sigma.abs() + MIN_SIGMA[interpolation]).unsqueeze(-1)
    if interpolation == "max":
        return (width - (pixel - centre).abs()).relu()
    return torch.exp(-0.5 * ((pixel - centre) / width).square())


def _bump_gradient(
    upstream: Tensor, bump: Tensor, position: Tensor, sigma: Tensor | None, interpolation: str
) -> tuple[Tensor, Tensor | None]:
    """Gradient of `_bump`: (..., k, size) upstream -> (..., k) for positions and for sigmas, or None."""
    size = bump.shape[-1]
    pixel = torch.arange(size, device=position.device, dtype=position.dtype)
    centre = (position + size // 2).unsqueeze(-1)
    if interpolation == "v0":
        # At an integer position one-sided, unlike the derivative of relu(1 - |distance|); as in the package.
        lower = centre.floor()
        slope = (pixel == lower + 1).to(bump.dtype) - (pixel == lower).to(bump.dtype)
        return (upstream * slope).sum(-1), None
    offset = pixel - centre
    if interpolation == "v1":
        return torch.where(bump > 0, upstream * offset.sign(), 0).sum(-1), None
    assert sigma is not None
    if interpolation == "max":
        inside = torch.where(bump > 0, upstream, 0)
        return (inside * offset.sign()).sum(-1), inside.sum(-1) * sigma.sign()
    width = sigma.abs() + MIN_SIGMA[interpolation]
    by_offset = upstream * bump * offset
    to_sigma = (by_offset * offset).sum(-1) / width**3 * sigma.sign()
    return by_offset.sum(-1) / width**2, to_sigma


def _in_full_precision(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Run the backward pass in its inputs' types, ignoring the autocast of the caller or of what compiled it."""

    @functools.wraps(backward)
    def without_autocast(ctx: Any, upstream: Tensor) -> Any:
        with torch.autocast(upstream.device.type, enabled=False):
            return backward(ctx, upstream)

    return without_autocast


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product (..., m, k), (..., k, n) -> (..., m, n) in the full precision of its arguments."""
    return a @ b if a.device.type == "cpu" else _sum_of_products(a, b)


def _sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    """`_product` without the routines of a GPU that round to TF32 where that is allowed: positions would have ten bits.

    Compiled, it is one loop; as written, it takes n times the memory of `a`.
    """
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


class _KernelConstruction(torch.autograd.Function):
    """The kernel and its gradient by hand, so that only weight, P and SIG are kept for backward.

    With rows R (k, K0), columns C (k, K1) and w' = w / n, n = sum(R) sum(C) + eps for each element, the kernel
    is R^T diag(w') C. Both passes are plain tensor operations, so a second derivative exists where it does.
    """

    @staticmethod
    def forward(ctx, weight, positions, sigma, size, interpolation):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight, positions, sigma)
        ctx.size, ctx.interpolation = size, interpolation
        rows, columns, norm = _factors(positions, sigma, size, interpolation)
        scaled = weight if norm is None else weight / norm
        # (Cout, Cin/g, K0, k) times (Cout, Cin/g, k, K1)
        return _product((rows * scaled.unsqueeze(-1)).transpose(-1, -2), columns)

    @staticmethod
    @_in_full_precision
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        weight, positions, sigma = ctx.saved_tensors
        row = row_axis(ctx.interpolation)
        rows, columns, norm = _factors(positions, sigma, ctx.size, ctx.interpolation)
        scaled = weight if norm is None else weight / norm
        projected = _product(columns, upstream.transpose(-1, -2))  # (..., k, K0)
        to_rows = scaled.unsqueeze(-1) * projected
        to_columns = _product(rows * scaled.unsqueeze(-1), upstream)  # (..., k, K1)
        to_weight = (rows * projected).sum(-1)  # of w'
        if norm is not None:
            to_norm = -to_weight * scaled / norm
            to_weight = to_weight / norm
            to_rows = to_rows + (to_norm * columns.sum(-1)).unsqueeze(-1)
            to_columns = to_columns + (to_norm * rows.sum(-1)).unsqueeze(-1)
        ends = []
        for axis, gradient, bump in ((row, to_rows, rows), (1 - row, to_columns, columns)):
            width = None if sigma is None else sigma[axis]
            ends.append(_bump_gradient(gradient, bump, positions[axis], width, ctx.interpolation))
        if row == 1:
            ends.reverse()
        to_sigma = torch.stack([end[1] for end in ends if end[1] is not None]) if sigma is not None else None
        return to_weight, torch.stack([end[0] for end in ends]), to_sigma, None, None


class _BilinearKernel(torch.autograd.Function):
    """The kernel of `v0` and `v1` from the four pixels that an element touches, and its gradient by hand.

    Far less work than `_KernelConstruction`, whose rows and columns are zero but for two pixels. With the values
    r_i c_j w' at the pixels (i, j), as there. For CPUs: on a GPU the order of the sums would be left to chance.
    """

    @staticmethod
    def forward(ctx, weight, positions, size, interpolation):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight, positions)
        ctx.size, ctx.interpolation = size, interpolation
        elements = weight.reshape(-1, weight.shape[-1])
        (rows, columns), pixels, norm, _ = _shared_taps(positions, size, interpolation)
        scaled = elements if norm is None else elements / norm
        values = (rows * scaled)[:, None] * columns
        kernel = elements.new_zeros(len(elements), size[0] * size[1])
        kernel.scatter_add_(1, pixels, values.permute(2, 0, 1, 3).flatten(1))
        return kernel.view(*weight.shape[:2], *size)

    @staticmethod
    @_in_full_precision
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        weight, positions = ctx.saved_tensors
        elements = weight.reshape(-1, weight.shape[-1])
        taps = _taps if torch.is_grad_enabled() else _shared_taps  # for a second derivative the taps need a graph
        (rows, columns), pixels, norm, (row_slopes, column_slopes) = taps(positions, ctx.size, ctx.interpolation)
        scaled = elements if norm is None else elements / norm
        found = upstream.reshape(len(elements), -1).gather(1, pixels)
        found = found.view(len(elements), 2, 2, -1).permute(1, 2, 0, 3)  # (row, column, N, k)
        at_rows = found[:, 0] * columns[0] + found[:, 1] * columns[1]
        at_columns = found[0] * rows[0] + found[1] * rows[1]
        to_weight = rows[0] * at_rows[0] + rows[1] * at_rows[1]  # of w'
        to_row = scaled * (row_slopes * at_rows).sum(0)
        to_column = scaled * (column_slopes * at_columns).sum(0)
        if norm is not None:
            to_norm = -to_weight * scaled / norm
            to_weight = to_weight / norm
            to_row = to_row + to_norm * row_slopes.sum(0) * columns.sum(0)
            to_column = to_column + to_norm * column_slopes.sum(0) * rows.sum(0)
        ends = (to_row, to_column) if row_axis(ctx.interpolation) == 0 else (to_column, to_row)
        return to_weight.view_as(weight), torch.stack(ends).view_as(positions), None, None


class _Taps(NamedTuple):
    """What bilinear elements put where, for N = Cout * Cin/g kernels of k elements."""

    values: tuple[Tensor, Tensor]
    """At the two rows and the two columns that an element touches, each (2, N, k), 0 outside the kernel."""
    pixels: Tensor
    """Flat index (N, 4 k) of the pixels they meet in."""
    norm: Tensor | None
    """What the weights are divided by, (N, k) or None."""
    slopes: tuple[Tensor, Tensor]
    """Of the values, of their shapes."""


def _taps(positions: Tensor, size: tuple[int, int], interpolation: str) -> _Taps:
    row = row_axis(interpolation)
    length = positions.new_tensor(size if row == 0 else size[::-1]).view(2, 1, 1)
    centre = positions.reshape(2, -1, positions.shape[-1]) + (length / 2).floor()
    lower = centre.floor()
    fraction = centre - lower
    pixel = torch.stack((lower, lower + 1))  # (2, axis, N, k)
    nearest = pixel.clamp(torch.zeros_like(length), length - 1)
    inside = (pixel == nearest).to(centre.dtype)
    values = torch.stack((1 - fraction, fraction)) * inside
    pixels = (nearest[:, row] * size[1])[:, None] + nearest[:, 1 - row]  # (2, 2, N, k)
    rows, columns = values[:, row], values[:, 1 - row]
    norm = None if interpolation == "v0" else rows.sum(0) * columns.sum(0) + _NORMALISATION_EPS
    slopes = inside * positions.new_tensor([-1, 1]).view(2, 1, 1, 1)
    if interpolation != "v0":  # at an integer position 0, where v0 takes the slope to one side, as in the package
        slopes = slopes * fraction.sign()
    flat = pixels.permute(2, 0, 1, 3).flatten(1).long()
    return _Taps((rows, columns), flat, norm, (slopes[:, row], slopes[:, 1 - row]))


_known_taps: WeakIdKeyDictionary = WeakIdKeyDictionary()  # positions -> (size, interpolation, their copy, taps)


def _shared_taps(positions: Tensor, size: tuple[int, int], interpolation: str) -> _Taps:
    """`_taps`, computed once for the layers of a stage, which share P, and kept until P is another.

    Of depthwise layers only: elsewhere they would take more memory than they save time.
    """
    if torch.compiler.is_compiling() or positions.shape[2] > 1:
        return _taps(positions, size, interpolation)
    known = _known_taps.get(positions)
    if known is None or known[:2] != (size, interpolation) or not torch.equal(known[2], positions):
        known = size, interpolation, positions.detach().clone(), _taps(positions, size, interpolation)
        _known_taps[positions] = known
    return known[3]


def _factors(
    positions: Tensor, sigma: Tensor | None, size: tuple[int, int], interpolation: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Row (..., k, K0) and column (..., k, K1) factors of the bumps, and what their weights are divided by."""
    row = row_axis(interpolation)
    row_sigma, column_sigma = (None, None) if sigma is None else (sigma[row], sigma[1 - row])
    rows = _bump(positions[row], row_sigma, size[0], interpolation)
    columns = _bump(positions[1 - row], column_sigma, size[1], interpolation)
    norm = None if interpolation == "v0" else rows.sum(-1) * columns.sum(-1) + _NORMALISATION_EPS
    return rows, columns, norm


def construct_kernel(
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None,
    dilated_kernel_size: tuple[int, int],
    interpolation: str,
) -> Tensor:
    """Dense kernel of a DCLS layer.

    Args:
        weight: (Cout, Cin/g, k) weights of the k elements.
        positions: P, (2, Cout, Cin/g, k), in pixels from the kernel's centre; see `row_axis`.
        sigma: SIG, (2, Cout, Cin/g, k), in pixels, for `max` and `gauss`; None otherwise.
        dilated_kernel_size: (rows, columns) of the dense kernel.
        interpolation: `v0`, `v1` (bilinear), `max` (triangle of learnt width) or `gauss`.

    Returns:
        (Cout, Cin/g, rows, columns), in float32, or float64 if the parameters are float64, whatever
        autocast says: half precision misplaces the elements.
    """
    with torch.autocast(weight.device.type, enabled=False):
        dtype = torch.promote_types(positions.dtype, torch.float32)
        weight, positions = weight.to(dtype), positions.to(dtype)
        sigma = None if sigma is None else sigma.to(dtype)
        if sigma is None and weight.device.type == "cpu":
            kernel = _BilinearKernel.apply(weight, positions, dilated_kernel_size, interpolation)
        else:
            kernel = _KernelConstruction.apply(weight, positions, sigma, dilated_kernel_size, interpolation)
    assert isinstance(kernel, Tensor)
    return kernel


def plain_depthwise_conv2d(x: Tensor, kernel: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """Depthwise convolution by `F.conv2d`; see `depthwise_conv2d`."""
    return F.conv2d(x, kernel, bias, 1, padding, 1, x.shape[1])


def depthwise_conv2d(x: Tensor, kernel: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """Depthwise convolution with stride 1 and zero padding: on a CPU with a fast backward pass for large kernels.

    Args:
        x: (B, C, H, W).
        kernel: (C, 1, K0, K1).
        bias: (C) or None.
        padding: rows and columns of zeros on each side.

    Returns:
        (B, C, H', W') as `F.conv2d` gives it, in autocast's type where that is on.
    """
    if x.device.type != "cpu" or not x.numel() or not padding_fits(kernel, padding):
        return plain_depthwise_conv2d(x, kernel, bias, padding)
    x, kernel, bias = autocast_like_conv2d(x, kernel, bias)
    out = _DepthwiseOnCpu.apply(x.contiguous(memory_format=torch.channels_last), kernel, bias, padding)
    assert isinstance(out, Tensor)
    return out


def padding_fits(kernel: Tensor, padding: tuple[int, int]) -> bool:
    """Whether the padding is less than the kernel, as a backward pass made of forward convolutions needs."""
    return all(pad < size for pad, size in zip(padding, kernel.shape[2:]))


def autocast_like_conv2d(x: Tensor, kernel: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments in the type that autocast would give them."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, kernel, bias
    half = torch.get_autocast_dtype(x.device.type)
    return x.to(half), kernel.to(half), None if bias is None else bias.to(half)


class _DepthwiseOnCpu(torch.autograd.Function):
    """Depthwise convolution, stride 1, zero padding, whose backward pass is made of forward convolutions.

    oneDNN's forward runs near the peak of a CPU, its direct weight gradient of a large kernel far below. Padding
    is less than the kernel on each axis.
    """

    @staticmethod
    def forward(ctx, x, kernel, bias, padding):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, kernel)
        ctx.padding, ctx.has_bias = padding, bias is not None
        return F.conv2d(x, kernel, bias, 1, padding, 1, x.shape[1])

    @staticmethod
    @_in_full_precision
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        x, kernel = ctx.saved_tensors
        to_x = to_kernel = to_bias = None
        if ctx.needs_input_grad[0]:
            rest = [size - 1 - padding for size, padding in zip(kernel.shape[2:], ctx.padding)]
            to_x = F.conv2d(upstream, kernel.flip(2, 3), None, 1, rest, 1, x.shape[1])
        if ctx.needs_input_grad[1]:
            to_kernel = _depthwise_weight_gradient(x, upstream, ctx.padding).to(kernel.dtype)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            to_bias = upstream.sum((0, 2, 3))
        return to_x, to_kernel, to_bias, None


def _depthwise_weight_gradient(x: Tensor, upstream: Tensor, padding: tuple[int, int]) -> Tensor:
    """Correlate (B, C, H, W) with (B, C, H', W'), summed over the batch: (C, 1, K0, K1).

    It is the depthwise convolution of one image of B * C channels with a kernel of H' x W'; made for few images at a
    time, as a large batch falls out of the cache and takes up to four times as long.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    images = max(1, _CACHED_VALUES // x[:1].numel())
    total = x.new_zeros((), dtype=dtype)
    for part, slopes in zip(x.to(dtype).split(images), upstream.to(dtype).split(images)):
        batch, channels = part.shape[:2]
        # (H, W, B * C) in memory: channels_last, which oneDNN wants
        flat = part.permute(2, 3, 0, 1).reshape(1, *part.shape[2:], batch * channels).permute(0, 3, 1, 2)
        kernels = slopes.reshape(batch * channels, 1, *slopes.shape[2:])
        products = F.conv2d(flat, kernels, None, 1, padding, 1, batch * channels)
        total = total + products.view(batch, channels, 1, *products.shape[2:]).sum(0)
    return total


Sides = tuple[tuple[int, int], tuple[int, int]]
"""Rows above and below, and columns to the left and right, that padding adds to a map."""


@dataclass(frozen=True)
class SamePadding:
    """Padding `SAME` of TensorFlow, kept where a kernel of another size takes a convolution's place.

    A map of n rows gets ceil(n / stride) rows, columns alike (tensorflow.org/api_docs/python/tf/nn, "Notes on
    padding"). The windows of the new kernel have their centres, pixel K // 2 on an axis of K, where those of the
    convolution had them.
    """

    kernel_size: tuple[int, int]
    """Rows and columns that the convolution's kernel covers, the gaps of a dilated one included."""

    def sides(self, size: tuple[int, int], stride: tuple[int, int], kernel_size: tuple[int, int]) -> Sides:
        """Padding of a map of `size` for the new kernel; a negative number cuts off."""
        rows, columns = map(_same_side, self.kernel_size, size, stride, kernel_size)
        return rows, columns


def _same_side(covered: int, size: int, stride: int, kernel_size: int) -> tuple[int, int]:
    """One axis of `SamePadding.sides`."""
    last = (-(-size // stride) - 1) * stride  # where the last window starts, counted from the first
    before = max(last + covered - size, 0) // 2 + kernel_size // 2 - covered // 2
    return before, last + kernel_size - size - before


def padding_sides(
    padding: int | tuple[int, ...] | Sides | str, stride: tuple[int, ...], kernel_size: tuple[int, int]
) -> Sides:
    """What `padding` of a convolution means: numbers, `same` or `valid`.

    Raises:
        ValueError: another word, a number below 0, or `same` with a stride.
    """
    if padding == "same":
        if stride != (1, 1):
            raise ValueError("padding='same' is not supported for strided convolutions")
        rows, columns = (((size - 1) // 2, size // 2) for size in kernel_size)
        return rows, columns
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f"padding {padding!r} is unknown; take 'same', 'valid' or numbers")
    rows, columns = map(_pair, _pair(0 if isinstance(padding, str) else padding))
    if min(*rows, *columns) < 0:
        raise ValueError(f"padding is {padding}; it must be at least 0")
    return rows, columns


def _padded(x: Tensor, sides: Sides, mode: str) -> tuple[Tensor, tuple[int, int]]:
    """A map with all its padding but the zeros that the convolution itself adds, and these, alike on both sides."""
    (top, bottom), (left, right) = sides
    rows, columns = (max(min(top, bottom), 0), max(min(left, right), 0)) if mode == "zeros" else (0, 0)
    rest = (left - columns, right - columns, top - rows, bottom - rows)
    if any(rest):
        x = F.pad(x, rest, mode="constant" if mode == "zeros" else mode)
    return x, (rows, columns)


class SameConv2d(nn.Conv2d):
    """Convolution padded by `SamePadding`, which depends on the map's size: what a DCLS layer with it folds to."""

    def __init__(self, *args: Any, same: SamePadding, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.same = same

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, Cin, H, W)."""
        stride, kernel_size = (self.stride[0], self.stride[1]), (self.kernel_size[0], self.kernel_size[1])
        x, padding = _padded(x, self.same.sides((x.shape[-2], x.shape[-1]), stride, kernel_size), self.padding_mode)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, 1, self.groups)

    def extra_repr(self) -> str:
        """As of `torch.nn.Conv2d`, and the padding."""
        return f"{super().extra_repr()}, same={self.same}"


class DclsConv2d(_DclsNd):
    """2-D convolution whose k kernel elements have learnable positions; takes the place of `torch.nn.Conv2d`.

    State dicts are interchangeable with `DCLS.construct.modules.Dcls2d`: `weight` (Cout, Cin/g, k),
    `P` (2, Cout, Cin/g, k), `SIG` (2, Cout, Cin/g, k) for `max` and `gauss` only, `bias` (Cout) or none.
    Unlike the package, non-square kernels are right for every interpolation and `max` learns its widths.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        kernel_count: k, the number of elements.
        stride: as in `torch.nn.Conv2d`.
        padding: as in `torch.nn.Conv2d`, `same` and `valid` included; `dilated_kernel_size // 2` keeps the size of
            the map. Also ((above, below), (left, right)), or a `SamePadding`.
        dilated_kernel_size: rows and columns of the plane in which the elements move.
        groups: as in `torch.nn.Conv2d`.
        bias: as in `torch.nn.Conv2d`.
        padding_mode: `zeros`, `reflect`, `replicate` or `circular`.
        interpolation: `v0`, `v1`, `max` or `gauss` (`version` in the package).

    Shape: (B, Cin, H, W) -> (B, Cout, H', W') as a convolution with a kernel of `dilated_kernel_size`.

    The attribute `depthwise` computes a depthwise layer; `common.surgery.set_depthwise` gives it another function.

    Raises:
        ValueError: unknown interpolation, padding or padding mode, a number below its range, or channels that groups
            do not divide.
        TypeError: `version`, the package's word for `interpolation`.
    """

    padding: tuple[int, int] | Sides | SamePadding
    """Rows and columns on either side; by side where they differ."""
    depthwise = staticmethod(depthwise_conv2d)
    constrained = ("P",)
    """Names of the parameters that `constrain` brings back; layers may share them."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | Sides | str | SamePadding = 0,
        dilated_kernel_size: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        interpolation: str = "gauss",
        **unknown: Never,
    ) -> None:
        if unknown:
            hint = "; `version` of the dcls package is called interpolation here" if "version" in unknown else ""
            raise TypeError(f"DclsConv2d has no argument {', '.join(unknown)}{hint}")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {interpolation!r} is unknown; take one of {', '.join(INTERPOLATIONS)}")
        numbers = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_count": kernel_count,
            "stride": stride,
            "dilated_kernel_size": dilated_kernel_size,
            "groups": groups,
        }
        for name, number in numbers.items():
            if min(_pair(number)) < 1:
                raise ValueError(f"{name} is {number}; it must be at least 1")
        if not isinstance(padding, SamePadding):
            (top, bottom), (left, right) = sides = padding_sides(padding, _pair(stride), _pair(dilated_kernel_size))
            padding = (top, left) if top == bottom and left == right else sides
        super().__init__(
            in_channels,
            out_channels,
            kernel_count,
            _pair(stride),
            _pair(0),  # padding, below
            _pair(dilated_kernel_size),
            False,  # transposed
            _pair(0),  # output_padding
            groups,
            bias,
            padding_mode,
            interpolation,
        )
        self.padding = padding

    @property
    def interpolation(self) -> str:
        """`v0`, `v1`, `max` or `gauss`."""
        return self.version

    def reset_parameters(self) -> None:
        """Initial values of the package: weight Kaiming-uniform, P normal(0, 0.5 px) clamped, SIG constant."""
        super().reset_parameters()
        if self.SIG is not None:
            nn.init.constant_(self.SIG, _INITIAL_SIG[self.version])
        self.clamp_parameters()

    @torch.no_grad()
    def clamp_parameters(self) -> None:
        """Bring every position back to within +-(K // 2) of the centre, on its own axis."""
        row = row_axis(self.version)
        for axis, size in ((row, self.dilated_kernel_size[0]), (1 - row, self.dilated_kernel_size[1])):
            self.P[axis].clamp_(-(size // 2), size // 2)

    def constrain(self) -> None:
        """What holds after each update: `clamp_parameters`. Called by `common.constraints.constrain`."""
        self.clamp_parameters()

    def kernel(self) -> Tensor:
        """Dense kernel (Cout, Cin/g, K0, K1) in float32 or float64, with its graph to weight, P and SIG."""
        return construct_kernel(self.weight, self.P, self.SIG, self.dilated_kernel_size, self.version)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, Cin, H, W) with the kernel that the present positions make."""
        kernel = self.kernel().to(self.weight.dtype)
        x, padding = _padded(x, self._sides(x), self.padding_mode)
        if x.ndim == 4 and self.stride == (1, 1) and self._is_depthwise():
            return self.depthwise(x, kernel, self.bias, padding)
        return F.conv2d(x, kernel, self.bias, self.stride, padding, 1, self.groups)

    def _sides(self, x: Tensor) -> Sides:
        """The padding of a map (..., H, W)."""
        if isinstance(self.padding, SamePadding):
            return self.padding.sides((x.shape[-2], x.shape[-1]), self.stride, self.dilated_kernel_size)
        rows, columns = map(_pair, self.padding)
        return rows, columns

    def _is_depthwise(self) -> bool:
        return self.groups == self.in_channels == self.out_channels

    @torch.no_grad()
    def fold(self) -> nn.Conv2d:
        """The plain convolution that computes the same function, on the same device and in the same type.

        A `torch.nn.Conv2d`, or a `SameConv2d` for a `SamePadding`.
        """
        kernel, padding = self.kernel(), (0, 0)
        build: Callable[..., nn.Conv2d] = nn.Conv2d
        if isinstance(self.padding, SamePadding):
            build = functools.partial(SameConv2d, same=self.padding)
        else:
            # A plain convolution pads both sides alike: what it pads too much, zeros in its kernel take back.
            (top, bottom), (left, right) = map(_pair, self.padding)
            padding = (max(top, bottom), max(left, right))
            kernel = F.pad(kernel, (padding[1] - left, padding[1] - right, padding[0] - top, padding[0] - bottom))
        conv = build(
            self.in_channels,
            self.out_channels,
            kernel.shape[2:],
            self.stride,
            padding,
            1,
            self.groups,
            self.bias is not None,
            self.padding_mode,
            self.weight.device,
            self.weight.dtype,
        )
        conv.weight.copy_(kernel)
        if self.bias is not None:
            assert conv.bias is not None
            conv.bias.copy_(self.bias)
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """One line with the layer's shape."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_count={self.kernel_count}, "
            f"dilated_kernel_size={self.dilated_kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"groups={self.groups}, bias={self.bias is not None}, interpolation={self.version}"
        )
