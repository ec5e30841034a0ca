"""Depthwise convolution with a large kernel as Triton kernels: channels_last, any type in, sums in float32.

Chosen by the user (`common.surgery.set_depthwise`), as it has not been measured on a GPU; it is checked in
Triton's interpreter on a CPU. A program makes a strip of one row's pixels times a block of channels, so that every
read is along the channels; the weight gradient is summed in parts of fixed order, the same in every run.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from common.dcls import autocast_like_conv2d, depthwise_conv2d, padding_fits

_CHANNELS = 32  # channels of a program
_PIXELS = 16  # pixels of a program
_PARTS = 64  # parts of the weight gradient
_WARPS = 1  # by the compiled code: half the instructions for a multiplication that four warps need


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


def _launch_correlation(x: Tensor, kernel: Tensor, padding: tuple[int, int], size: tuple[int, int]) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    rows, columns = kernel.shape[2:]
    out = torch.empty((batch, channels, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    grid = (batch * size[0], triton.cdiv(size[1], _PIXELS), triton.cdiv(channels, _CHANNELS))
    with torch.cuda.device_of(x):  # Triton launches on the current one
        _correlate[grid](
            x, kernel[:, 0].permute(1, 2, 0).contiguous(), out, height, width, channels, *size, *padding,
            rows, columns, _PIXELS, _CHANNELS, num_warps=_WARPS,
        )  # fmt: skip
    return out


class TritonDepthwise(torch.autograd.Function):
    """(B, C, H, W), (C, 1, K0, K1) -> (B, C, H', W'): stride 1, zero padding less than the kernel; one derivative."""

    @staticmethod
    def forward(ctx, x, kernel, padding):  # type: ignore[no-untyped-def]
        """The convolution."""
        ctx.save_for_backward(x, kernel)
        ctx.padding = padding
        size = [x.shape[2 + n] + 2 * padding[n] - kernel.shape[2 + n] + 1 for n in (0, 1)]
        return _launch_correlation(x, kernel, padding, (size[0], size[1]))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        """Gradients of input and kernel."""
        x, kernel = ctx.saved_tensors
        to_x = to_kernel = None
        (height, width), (rows, columns) = x.shape[2:], kernel.shape[2:]
        if ctx.needs_input_grad[0]:
            rest = (rows - 1 - ctx.padding[0], columns - 1 - ctx.padding[1])
            to_x = _launch_correlation(upstream, kernel.flip(2, 3), rest, (height, width))
        if ctx.needs_input_grad[1]:
            x, upstream = (t.contiguous(memory_format=torch.channels_last) for t in (x, upstream))
            batch, channels, out_h, out_w = upstream.shape
            lines = batch * out_h
            count = min(_PARTS, lines)
            parts = torch.empty(count, rows, columns, channels, device=x.device)
            with torch.cuda.device_of(x):
                _weight_gradient[count, rows, triton.cdiv(channels, _CHANNELS)](
                    x, upstream, parts, height, width, channels, out_h, out_w, *ctx.padding, lines,
                    triton.cdiv(lines, count), rows, columns, triton.next_power_of_2(columns), _CHANNELS,
                    num_warps=_WARPS,
                )  # fmt: skip
            to_kernel = parts.sum(0).permute(2, 0, 1)[:, None].to(kernel.dtype)
        return to_x, to_kernel, None


def triton_depthwise_conv2d(x: Tensor, kernel: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """`common.dcls.depthwise_conv2d` by Triton.

    It takes that itself where there is no GPU or no image, or the padding does not fit. Without a GPU the kernels
    run in Triton's interpreter if TRITON_INTERPRET=1.
    """
    runs = x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    if not runs or not x.numel() or not padding_fits(kernel, padding):
        return depthwise_conv2d(x, kernel, bias, padding)
    x, kernel, bias = autocast_like_conv2d(x, kernel, bias)
    out: Tensor = TritonDepthwise.apply(x, kernel, padding)
    return out if bias is None else out + bias.view(1, -1, 1, 1)
