"""The large depthwise convolution: our path, `F.conv2d` as the dcls package calls it, and the plain twin's 7x7.

On a GPU, where our path is `F.conv2d` in channels_last, the Triton kernels run beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from common.dcls import depthwise_conv2d
from tests.benchmarks.harness import alternate, device, markdown

TITLE = "Depthwise convolution, 17x17 against the plain twin's 7x7"
GOAL = "Goal: forward + backward of the 17x17 no slower than the 7x7 of the plain twin."

# model, channels, side of the map: one line per stage
SHAPES = [
    ("ConvNeXt-T/S", 96, 56),
    ("ConvNeXt-T/S", 192, 28),
    ("ConvNeXt-T/S", 384, 14),
    ("ConvNeXt-T/S", 768, 7),
    ("ConvNeXt-B", 128, 56),
    ("ConvNeXt-B", 256, 28),
    ("ConvNeXt-B", 512, 14),
    ("ConvNeXt-B", 1024, 7),
    ("ConvFormer-S18", 640, 14),
    ("FastViT, 256 px", 64, 64),
    ("FastViT, 256 px", 128, 32),
    ("FastViT, 256 px", 256, 16),
    ("FastViT, 256 px", 512, 8),
]
CALLS = ("forward", "to input", "to weight", "forward + backward")

Conv = Callable[[Tensor, Tensor], Tensor]


def package(x: Tensor, kernel: Tensor) -> Tensor:
    """As `DCLS.construct.modules` calls it."""
    return F.conv2d(x, kernel, None, 1, kernel.shape[-1] // 2, 1, x.shape[1])


def ours(x: Tensor, kernel: Tensor) -> Tensor:
    """As `DclsConv2d` calls it."""
    return depthwise_conv2d(x, kernel, None, (kernel.shape[-2] // 2, kernel.shape[-1] // 2))


def calls(conv: Conv, x: Tensor, kernel: Tensor) -> dict[str, Callable[[], object]]:
    """The parts of a training step of one convolution."""
    x, kernel = x.clone().requires_grad_(), kernel.clone().requires_grad_()
    by_input, by_kernel = conv(x, kernel.detach()), conv(x.detach(), kernel)
    upstream = torch.randn_like(by_input)

    def whole() -> object:
        return torch.autograd.grad(conv(x, kernel), (x, kernel), upstream)

    def forward() -> object:
        with torch.no_grad():
            return conv(x, kernel)

    return {
        "forward": forward,
        "to input": lambda: torch.autograd.grad(by_input, x, upstream, retain_graph=True),
        "to weight": lambda: torch.autograd.grad(by_kernel, kernel, upstream, retain_graph=True),
        "forward + backward": whole,
    }


def run(rounds: int = 5, batch: int | None = None) -> str:
    """The table of this benchmark: bf16 and batch 64 on a GPU, float32 and batch 4 on a CPU."""
    where = device()
    gpu = where.type == "cuda"
    batch, dtype = batch or (64 if gpu else 4), torch.bfloat16 if gpu else torch.float32
    rows = []
    for name, channels, side in SHAPES:
        torch.manual_seed(0)
        x = torch.randn(batch, channels, side, side, device=where, dtype=dtype)
        last = x.contiguous(memory_format=torch.channels_last)
        large, small = (torch.randn(channels, 1, k, k, device=where, dtype=dtype) / k for k in (17, 7))
        torch.testing.assert_close(ours(last, large), package(x, large), atol=0.05 if gpu else 1e-3, rtol=0.05)
        contestants = {
            "package": calls(package, x, large),
            "ours": calls(ours, last, large),
            "plain": calls(package, last, small),
        }
        if gpu:
            from common.depthwise_triton import triton_depthwise_conv2d

            def by_triton(x: Tensor, kernel: Tensor) -> Tensor:
                return triton_depthwise_conv2d(x, kernel, None, (8, 8))

            contestants["triton"] = calls(by_triton, last, large)
            contestants["package, channels_last"] = calls(package, last, large)
            contestants["plain, NCHW"] = calls(package, x, small)
            for part in CALLS[:3]:
                found, expected = (contestants[key][part]() for key in ("triton", "package, channels_last"))
                torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
        times = {part: alternate({key: parts[part] for key, parts in contestants.items()}, rounds) for part in CALLS}
        whole = times["forward + backward"]
        rows.append(
            [
                f"{name} {batch}x{channels}x{side}x{side}",
                *(f"{whole[key].median * 1e3:.2f}" for key in ("package", "ours", "plain")),
                f"{whole['package'].median / whole['ours'].median:.1f}",
                f"{whole['ours'].median / whole['plain'].median:.2f}",
                f"{whole['triton'].median / whole['plain'].median:.2f}" if gpu else "-",
                *(" / ".join(f"{t.median * 1e3:.2f}" for t in times[part].values()) for part in CALLS[:3]),
            ]
        )
    header = ["shape", "package 17x17 ms", "ours 17x17 ms", "plain 7x7 ms", "ours faster than package", "ours / plain"]
    order = "package / ours / plain ms"
    if gpu:  # `package` in NCHW, as its users have it
        order = "package / ours / plain / Triton / package, channels_last / plain, NCHW ms"
    return markdown([*header, "Triton / plain", *(f"{part}: {order}" for part in CALLS[:3])], rows)
