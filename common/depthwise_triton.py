"""Depthwise convolution with a large kernel as Triton kernels: channels_last, any type in, sums in float32.

Chosen by the user (`common.surgery.set_depthwise`), as it has not been run on a GPU: it is checked in Triton's
interpreter on a CPU, and compiled for sm_80 and sm_90 there. A program makes a strip of one row's pixels times a block
of channels, so that every read is along the channels; the weight gradient is summed in parts of fixed order, the same
in every run.

The launches are operators of torch: `torch.compile` takes each as one node and does not look into it, so neither
Triton nor the choice of the device breaks its graph.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

from common.dcls import autocast_like_conv2d, depthwise_conv2d, padding_fits
from common.errors import UserError

_CHANNELS = 32  # channels of a program
_PIXELS = 16  # pixels of a program
_PARTS = 64  # parts of the weight gradient
_WARPS = 1  # by the compiled code, half as many instructions per multiplication as four warps need


@triton.jit
def _correlate(  # type: ignore[no-untyped-def]
    x, kernel, out, H, W, C, out_h, out_w, pad_h, pad_w,
    K0: tl.constexpr, K1: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out (B, out_h, out_w, C) from x (B, H, W, C) and kernel (K0, K1, C)."""
    line = tl.program_id(0)
    image, row = (line // out_h).to(tl.int64), line % out_h
    column = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < C
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    first = column - pad_w
    for i in range(tl.maximum(pad_h - row, 0), tl.minimum(H + pad_h - row, K0)):  # rows beyond the edge add nothing
        start = x + ((image * H + row + i - pad_h) * W) * C
        for j in range(K1):
            at = first + j
            mask = ((at >= 0) & (at < W))[:, None] & known[None, :]
            values = tl.load(start + at[:, None] * C + channel[None, :], mask=mask, other=0.0)
            weights = tl.load(kernel + (i * K1 + j) * C + channel, mask=known, other=0.0)
            total += values.to(tl.float32) * weights.to(tl.float32)[None, :]
    place = ((image * out_h + row) * out_w + column[:, None]) * C + channel[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(column < out_w)[:, None] & known[None, :])


@triton.jit
def _weight_gradient(  # type: ignore[no-untyped-def]
    x, upstream, parts, H, W, C, out_h, out_w, pad_h, pad_w, lines, lines_per_part,
    K0: tl.constexpr, K1: tl.constexpr, K1_PADDED: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """parts (P, K0, K1, C) float32: the lines of one part, a row of the kernel, a block of channels."""
    part, i = tl.program_id(0), tl.program_id(1)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < C
    j = tl.arange(0, K1_PADDED)
    total = tl.zeros((K1_PADDED, CHANNELS), tl.float32)
    first = j - pad_w
    for number in range(lines_per_part):
        line = part * lines_per_part + number
        image, row = (tl.minimum(line, lines - 1) // out_h).to(tl.int64), line % out_h
        y = row + i - pad_h
        start = x + ((image * H + y) * W) * C
        above = upstream + ((image * out_h + row) * out_w) * C
        # Lines behind the last and rows beyond the edge add nothing.
        for column in range(tl.where((line < lines) & (y >= 0) & (y < H), out_w, 0)):
            at = first + column
            mask = ((at >= 0) & (at < W) & (j < K1))[:, None] & known[None, :]
            values = tl.load(start + at[:, None] * C + channel[None, :], mask=mask, other=0.0)
            slopes = tl.load(above + column * C + channel, mask=known, other=0.0)
            total += values.to(tl.float32) * slopes.to(tl.float32)[None, :]
    place = ((part * K0 + i) * K1 + j[:, None]) * C + channel[None, :]
    tl.store(parts + place, total, mask=(j < K1)[:, None] & known[None, :])


def _correlation_like(x: Tensor, kernel: Tensor, padding: Sequence[int]) -> Tensor:
    """Where the correlation of x and kernel is to be written: (B, C, H', W') in channels_last."""
    size = [x.shape[2 + n] + 2 * padding[n] - kernel.shape[2 + n] + 1 for n in (0, 1)]
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _rest(kernel: Tensor, padding: Sequence[int]) -> list[int]:
    """Padding of the convolution that gives the input's gradient."""
    return [kernel.shape[2 + n] - 1 - padding[n] for n in (0, 1)]


def _launch_correlation(x: Tensor, kernel: Tensor, padding: Sequence[int]) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    out = _correlation_like(x, kernel, padding)
    batch, channels, height, width = x.shape
    size = out.shape[2:]
    grid = (batch * size[0], triton.cdiv(size[1], _PIXELS), triton.cdiv(channels, _CHANNELS))
    with torch.cuda.device_of(x):  # Triton launches on the current one
        _correlate[grid](
            x, kernel[:, 0].permute(1, 2, 0).contiguous(), out, height, width, channels, *size, *padding,
            *kernel.shape[2:], _PIXELS, _CHANNELS, num_warps=_WARPS,
        )  # fmt: skip
    return out


def _launch_weight_gradient(x: Tensor, upstream: Tensor, kernel_size: Sequence[int], padding: Sequence[int]) -> Tensor:
    x, upstream = (t.contiguous(memory_format=torch.channels_last) for t in (x, upstream))
    rows, columns = kernel_size
    height, width = x.shape[2:]
    batch, channels, out_h, out_w = upstream.shape
    lines = batch * out_h
    count = min(_PARTS, lines)
    parts = torch.empty(count, rows, columns, channels, device=x.device)
    with torch.cuda.device_of(x):
        _weight_gradient[count, rows, triton.cdiv(channels, _CHANNELS)](
            x, upstream, parts, height, width, channels, out_h, out_w, *padding, lines, triton.cdiv(lines, count),
            rows, columns, triton.next_power_of_2(columns), _CHANNELS, num_warps=_WARPS,
        )  # fmt: skip
    return parts.sum(0).permute(2, 0, 1)[:, None].contiguous()


@custom_op("dcls_align::depthwise", mutates_args=(), schema="(Tensor x, Tensor kernel, SymInt[] padding) -> Tensor")
def _depthwise(x: Tensor, kernel: Tensor, padding: Sequence[int]) -> Tensor:
    """(B, C, H, W), (C, 1, K0, K1) -> (B, C, H', W') of x's type: stride 1, zero padding less than the kernel."""
    return _launch_correlation(x, kernel, padding)


@custom_op(
    "dcls_align::depthwise_to_input",
    mutates_args=(),
    schema="(Tensor upstream, Tensor kernel, SymInt[] padding) -> Tensor",
)
def _to_input(upstream: Tensor, kernel: Tensor, padding: Sequence[int]) -> Tensor:
    """Gradient of the input, (B, C, H, W) of upstream's type."""
    return _launch_correlation(upstream, kernel.flip(2, 3), _rest(kernel, padding))


@custom_op(
    "dcls_align::depthwise_to_kernel",
    mutates_args=(),
    schema="(Tensor x, Tensor upstream, SymInt[] kernel_size, SymInt[] padding) -> Tensor",
)
def _to_kernel(x: Tensor, upstream: Tensor, kernel_size: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Gradient of the kernel, (C, 1, K0, K1) in float32, in which it is summed."""
    return _launch_weight_gradient(x, upstream, kernel_size, padding)


@_depthwise.register_fake
def _(x: Tensor, kernel: Tensor, padding: Sequence[int]) -> Tensor:
    return _correlation_like(x, kernel, padding)


@_to_input.register_fake
def _(upstream: Tensor, kernel: Tensor, padding: Sequence[int]) -> Tensor:
    return _correlation_like(upstream, kernel, _rest(kernel, padding))


@_to_kernel.register_fake
def _(x: Tensor, upstream: Tensor, kernel_size: Sequence[int], padding: Sequence[int]) -> Tensor:
    return x.new_empty((x.shape[1], 1, *kernel_size), dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Sequence[int]], output: Tensor) -> None:
    x, kernel, ctx.padding = inputs
    ctx.save_for_backward(x, kernel)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, kernel = ctx.saved_tensors
    to_x = to_kernel = None
    if ctx.needs_input_grad[0]:
        to_x = _to_input(upstream, kernel, ctx.padding)
    if ctx.needs_input_grad[1]:
        to_kernel = _to_kernel(x, upstream, kernel.shape[2:], ctx.padding).to(kernel.dtype)
    return to_x, to_kernel, None


def _refuse(ctx: Any, upstream: Tensor) -> None:
    raise UserError("depthwise=triton has no second derivative; take depthwise=conv2d or auto")


_depthwise.register_autograd(_backward, setup_context=_keep)
_to_input.register_autograd(_refuse)
_to_kernel.register_autograd(_refuse)


def triton_depthwise_conv2d(x: Tensor, kernel: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """`common.dcls.depthwise_conv2d` by Triton.

    It falls back to that where there is no GPU or no image, or the padding does not fit. Without a GPU the kernels
    run in Triton's interpreter if TRITON_INTERPRET=1. Under autocast the result is in its type, while the kernel and
    its gradient are not rounded to it. One derivative.
    """
    runs = x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    if not runs or not x.numel() or not padding_fits(kernel, padding):
        return depthwise_conv2d(x, kernel, bias, padding)
    x, _, bias = autocast_like_conv2d(x, kernel, bias)
    out = _depthwise(x, kernel, padding)
    return out if bias is None else out + bias.view(1, -1, 1, 1)
