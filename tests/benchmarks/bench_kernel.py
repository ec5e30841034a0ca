"""Kernel construction, forward and backward, ours against the dcls package: time, and memory kept for backward."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from DCLS.construct.modules import Dcls2d

from common.dcls import DclsConv2d
from tests.benchmarks.harness import alternate, device, markdown

TITLE = "Kernel construction, forward + backward"
GOAL = "Goal: at least 20 times faster and 50 times less memory than the dcls package."

# model, interpolation, side, elements, channels out, channels in / groups: one layer shape a stage of the eight models
SHAPES = [
    ("ResNet50", "v0", 7, 5, 64, 64),
    ("ResNet50", "v0", 7, 5, 128, 128),
    ("ConvNeXt-T", "v0", 17, 34, 96, 1),
    ("ConvNeXt-T", "v0", 17, 34, 768, 1),
    ("ConvNeXt-S", "v0", 17, 40, 384, 1),
    ("ConvNeXt-B", "v0", 17, 40, 1024, 1),
    ("CAFormer-S18", "v1", 17, 34, 256, 1),
    ("ConvFormer-S18", "v1", 17, 40, 640, 1),
    ("FastViT-SA24/36", "v1", 17, 34, 512, 1),
    ("ConvNeXt-T gauss", "gauss", 23, 26, 384, 1),
]


def saved_bytes(forward: Callable[[], torch.Tensor]) -> int:
    """Distinct memory that autograd keeps for backward."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storages.values())


def run(rounds: int = 7) -> str:
    """The table of this benchmark."""
    logging.disable(logging.WARNING)  # the package warns of a missing extension for every layer
    rows = []
    for name, interpolation, side, elements, cout, cin in SHAPES:
        groups = 1 if cin > 1 else cout
        arguments = {"padding": side // 2, "dilated_kernel_size": side, "groups": groups}
        theirs = Dcls2d(cout if cin == 1 else cin, cout, elements, version=interpolation, **arguments).to(device())
        ours = DclsConv2d(cout if cin == 1 else cin, cout, elements, interpolation=interpolation, **arguments)
        ours = ours.to(device())
        ours.load_state_dict(theirs.state_dict())
        upstream = torch.randn(cout, cin, side, side, device=device())

        def package() -> torch.Tensor:
            return theirs.DCK(theirs.weight, theirs.P, theirs.SIG)  # noqa: B023

        torch.testing.assert_close(ours.kernel(), package(), atol=1e-6, rtol=0)
        times = alternate(
            {
                "ours": lambda: ours.kernel().backward(upstream),  # noqa: B023
                "dcls": lambda: package().backward(upstream),  # noqa: B023
            },
            rounds,
        )
        mine, other = saved_bytes(ours.kernel), saved_bytes(package)
        rows.append(
            [
                f"{name} {cout}x{cin}x{side}x{side}, {elements} {interpolation}",
                str(times["dcls"]),
                str(times["ours"]),
                f"{times['dcls'].median / times['ours'].median:.1f}",
                f"{other / 2**20:.1f}",
                f"{mine / 2**20:.3f}",
                f"{other / mine:.0f}",
            ]
        )
    header = ["layer", "dcls ms", "ours ms", "times faster", "dcls MiB kept", "ours MiB kept", "times less"]
    return markdown(header, rows)
