"""Kernel construction, forward and backward, ours against the dcls package: time, and memory kept for backward."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from DCLS.construct.modules import Dcls2d
from torch.utils._pytree import tree_map_only

from common.dcls import DclsConv2d, _known_taps
from common.models.zoo import create_model
from common.surgery import position_groups
from tests.benchmarks.harness import alternate, device, markdown

TITLE = "Kernel construction, forward + backward"
GOAL = (
    "Goal: at least 20 times faster and 50 times less memory than the dcls package. The first layer of a stage, with "
    "what the stage's other layers get from it: they take less time and memory."
)

MODELS = ("resnet50", "convnext_t", "convnext_s", "convnext_b", "caformer_s18", "convformer_s18", "fastvit_sa24")
"""`fastvit_sa36` has the layers of `fastvit_sa24`."""


def shapes() -> list[tuple[str, str, int, int, int, int]]:
    """Model, interpolation, side, elements, channels out, channels in / groups: one layer per stage."""
    found = []
    for model in (*(f"{name}_dcls" for name in MODELS), "convnext_t_dcls_gauss"):
        for group in position_groups(create_model(model)):
            layer = group.layers[0][1]
            side = layer.dilated_kernel_size[0]
            found.append((model, layer.interpolation, side, *(layer.weight.shape[n] for n in (2, 0, 1))))
    return found


def saved_bytes(forward: Callable[[], torch.Tensor]) -> int:
    """Distinct memory that autograd keeps for backward."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storages.values())


def kept_taps_bytes(positions: torch.Tensor) -> int:
    """Memory that a stage keeps beside autograd, counted whole for its first layer."""
    storages: dict[int, int] = {}
    tree_map_only(
        torch.Tensor,
        lambda tensor: storages.__setitem__(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()),
        _known_taps.get(positions, ()),
    )
    return sum(storages.values())


def run(rounds: int = 5) -> str:
    """The table of this benchmark."""
    logging.disable(logging.WARNING)  # the package warns of a missing extension for every layer
    rows = []
    for name, interpolation, side, elements, cout, cin in shapes():
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

        def moved(layer: DclsConv2d | Dcls2d, kernel: Callable[[], torch.Tensor]) -> Callable[[], None]:
            def work() -> None:
                with torch.no_grad():
                    layer.P.neg_()  # as an update moves them: what depends on them is computed anew
                kernel().backward(upstream)  # noqa: B023

            return work

        times = alternate({"ours": moved(ours, ours.kernel), "dcls": moved(theirs, package)}, rounds)
        mine, other = saved_bytes(ours.kernel) + kept_taps_bytes(ours.P), saved_bytes(package)
        rows.append(
            [
                f"{name.replace('_dcls', '')} {cout}x{cin}x{side}x{side}, {elements} {interpolation}",
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
