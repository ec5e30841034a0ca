"""One training step of a whole model: DCLS twin, plain twin, and the twin built on the dcls package's layer."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import torch
from DCLS.construct.modules import Dcls2d
from torch import nn

from common.dcls import DclsConv2d
from common.models.zoo import crashes_channels_last, create_model, lookup
from tests.benchmarks.harness import alternate, device, markdown

TITLE = "One training step, whole model"
GOAL = "Goal: the DCLS twin at 0.95 of the plain twin's images per second or better."
MODELS = ("convnext_t", "convformer_s18", "fastvit_sa24", "resnet50", "convnext_b")


def with_package_layers(model: nn.Module) -> nn.Module:
    """The same model with the package's layer in the place of ours, sharing parameters with it."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, DclsConv2d):
            other = Dcls2d(
                layer.in_channels, layer.out_channels, layer.kernel_count, layer.stride, layer.padding,
                layer.dilated_kernel_size, layer.groups, layer.bias is not None, layer.padding_mode,
                version=layer.interpolation,
            )  # fmt: skip
            other.weight, other.P, other.SIG, other.bias = layer.weight, layer.P, layer.SIG, layer.bias
            model.set_submodule(name, other)
    return model


def step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, bf16: bool) -> None:
    """Forward, loss and backward, as a training loop does them; the positions are others every time."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".P"):
                parameter.neg_()


def run(models: tuple[str, ...] = MODELS, rounds: int = 3, batch: int | None = None) -> str:
    """The table of this benchmark: float32 and batch 4 on a CPU; on a GPU bf16, batch 128, eager and compiled.

    The recipes compile on a GPU; the package's layer runs eager beside both.
    """
    logging.disable(logging.WARNING)
    where = device()
    gpu = where.type == "cuda"
    batch = batch or (128 if gpu else 4)
    rows = []
    for name, compiled in itertools.product(models, (False, True) if gpu else (False,)):
        size = lookup(name).transform.crop
        built: dict[str, Any] = {"plain": create_model(name), "DCLS": create_model(f"{name}_dcls")}
        built["package"] = with_package_layers(create_model(f"{name}_dcls"))
        last = gpu or not crashes_channels_last(built["plain"])
        layout = torch.channels_last if last else torch.contiguous_format
        for key, model in built.items():
            built[key] = model.to(where).to(memory_format=layout).train()
            if compiled and key != "package":
                model.compile()
        images = torch.randn(batch, 3, size, size, device=where).contiguous(memory_format=layout)
        labels = torch.randint(0, 1000, (batch,), device=where)
        work = {key: (lambda m=model: step(m, images, labels, gpu)) for key, model in built.items()}  # noqa: B023
        times = alternate(work, rounds)
        speed = {key: batch / value.median for key, value in times.items()}
        rows.append(
            [
                f"{name}, {size} px, batch {batch}{', compiled' * compiled}",
                *(f"{speed[key]:.2f}" for key in ("plain", "DCLS", "package")),
                f"{speed['DCLS'] / speed['plain']:.2f}",
                f"{speed['DCLS'] / speed['package']:.1f}",
                " / ".join(str(times[key]) for key in ("plain", "DCLS", "package")),
            ]
        )
    header = ["model", "plain img/s", "DCLS img/s", "dcls package img/s", "DCLS / plain", "DCLS / package", "ms"]
    return markdown(header, rows)
