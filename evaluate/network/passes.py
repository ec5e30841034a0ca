"""One pass for all explainers at a layer: its output, the gradient of the target there, and the logits.

At the last feature map the backbone runs without gradients and only the head is differentiated. At any other
layer the network runs once, recording a graph only from that layer on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from common.errors import UserError, did_you_mean
from evaluate.network.layout import Layout, find_layout, full
from evaluate.network.targets import ResolvedTargets, Targets, resolve_targets

_NAME_ONE = "name the layer to explain (layer=...), such as the first norm of its last block"


@dataclass(frozen=True)
class Activations:
    """What the explainers at one layer share."""

    features: Tensor
    """(B, C, h, w) float32, contiguous, detached."""
    gradients: Tensor
    """(B, C, h, w) of each image's target score with respect to `features`."""
    logits: Tensor
    """(B, K) float32, detached."""
    targets: ResolvedTargets
    output: Tensor
    """The layer's own output, as `layout` says, detached."""
    layout: Layout
    layer: str | None
    """Name of the layer; None: the last feature map, where the rest of the network is `forward_head`."""


def uncompiled(model: nn.Module) -> Any:
    """The module behind `torch.compile(model)`: hooks and heads go through it."""
    return getattr(model, "_orig_mod", model)


def eager() -> AbstractContextManager[Any]:
    """Run compiled modules uncompiled: a compiled one may ignore a hook that was added later."""
    return torch.compiler.set_stance("force_eager")


def precision(images: Tensor, bf16: bool) -> AbstractContextManager[Any]:
    """Bfloat16 autocast on the images' device if asked; otherwise whatever the caller has set."""
    return torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext()


def default_layer(model: nn.Module) -> str | None:
    """The layer explained when none is named; None: the last feature map.

    A head that sees only the class token gives every final patch token a zero gradient; the layer is then the
    first norm of the last block, whose patches the class token still attends to.

    Raises:
        UserError: neither of the two exists in this model.
    """
    bare = uncompiled(model)
    if not (hasattr(bare, "forward_features") and hasattr(bare, "forward_head")):
        raise UserError(f"{type(bare).__name__} has no forward_features and forward_head; {_NAME_ONE}")
    if getattr(bare, "global_pool", None) != "token":
        return None
    blocks = getattr(bare, "blocks", None)
    if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) and hasattr(blocks[-1], "norm1"):
        return f"blocks.{len(blocks) - 1}.norm1"
    raise UserError(f"the head of {type(bare).__name__} sees the class token only; {_NAME_ONE}")


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The module of that name.

    Raises:
        UserError: there is none; the message gives the nearest names.
    """
    modules = dict(uncompiled(model).named_modules(remove_duplicate=False))
    if name in modules and name:
        return modules[name]
    hint = did_you_mean(name, [known for known in modules if known], 5)
    raise UserError(f"no layer {name!r} in {type(uncompiled(model)).__name__}; {hint}")


def head_pass(model: nn.Module, images: Tensor, targets: Targets = None, bf16: bool = False) -> Activations:
    """Run a model once and differentiate its head.

    Args:
        model: in evaluation mode, with timm's `forward_features` and `forward_head`.
        images: (B, 3, H, W), normalised.
        targets: what is explained in each image, see `evaluate.network.targets`.
        bf16: compute the features in bfloat16 (autocast); the head is always float32.

    Raises:
        UserError: the model gives no feature map.
        ValueError: the targets do not fit.
    """
    bare, backbone = uncompiled(model), cast(Any, model)
    with torch.no_grad(), precision(images, bf16):
        output = backbone.forward_features(images)
    if not isinstance(output, Tensor):
        raise UserError(f"{type(bare).__name__} gives features as {type(output).__name__}; {_NAME_ONE}")
    layout = find_layout(bare, output, images)
    # Contiguous and in the head's own type, so that the maps do not depend on how the backbone computed.
    output = output.to(_parameter_type(bare)).contiguous().detach()
    with torch.enable_grad():
        leaf = output.requires_grad_()
        logits = run_head(bare, leaf.clone())  # a head may work in place
        resolved = resolve_targets(targets, logits.detach())
        (gradients,) = torch.autograd.grad(resolved.scores(logits).sum(), leaf)
    output = leaf.detach()
    return Activations(
        layout.to_map(output),
        layout.to_map(gradients),
        full(logits.detach()),
        resolved,
        output,
        layout,
        None,
    )


def run_head(model: nn.Module, output: Tensor) -> Tensor:
    """Logits from the last feature map, never under autocast; the head may overwrite `output`."""
    with torch.autocast(output.device.type, enabled=False):
        return uncompiled(model).forward_head(output)


def _parameter_type(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


@contextmanager
def layer_output(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block the layer gives `change(output)`; afterwards the hook is gone, whatever happened.

    Raises:
        UserError: the layer's output is not a tensor.
    """

    def hook(_module: nn.Module, _args: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise UserError(f"the layer to explain gives a {type(output).__name__}, not a tensor; name another one")
        return change(output)

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def layer_pass(
    model: nn.Module, images: Tensor, layer: str, targets: Targets = None, bf16: bool = False
) -> Activations:
    """The same as `head_pass` at any named layer: one forward pass, one backward pass down to that layer.

    Raises:
        UserError: no such layer, one that does not run exactly once, or one whose output holds no map.
        ValueError: the targets do not fit.
    """
    bare = uncompiled(model)
    module = find_layer(bare, layer)
    leaves: list[Tensor] = []

    def cut(output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        torch.set_grad_enabled(True)  # until the no_grad block below ends: the graph begins here
        return leaves[-1].clone()  # the next layer may work in place

    with eager(), torch.no_grad(), precision(images, bf16), layer_output(module, cut):
        logits = bare(images)
    if len(leaves) != 1:
        raise UserError(f"layer {layer!r} runs {len(leaves)} times in a forward pass; name one that runs once")
    resolved = resolve_targets(targets, logits.detach())
    with torch.enable_grad():
        total = resolved.scores(full(logits)).sum()
    (gradients,) = torch.autograd.grad(total, leaves[0])
    output = leaves[0].detach()
    layout = find_layout(bare, output, images, module)
    return Activations(
        layout.to_map(output), layout.to_map(gradients), full(logits.detach()), resolved, output, layout, layer
    )
