"""Options of a measurement: explainers, metrics, protocols, precision, device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from evaluate.network.micro_batch import MicroBatch


@dataclass(frozen=True)
class RunOptions:
    """How a checkpoint is measured."""

    explainers: tuple[str, ...] = ("grad_cam", "threshold_grad_cam")
    """Each `NAME` or `NAME:KEY=VALUE,...`, see `evaluate.explainers`, or the baseline `OTHER_HUMAN`."""
    protocols: tuple[str, ...] = ("paper",)
    measures: tuple[str, ...] = ()
    """Further measures of every explainer, see `evaluate.metrics`; they do not depend on the protocol."""
    batch_size: int = 32
    workers: int = 2
    bf16: bool = False
    """Features in bfloat16; the head and the maps stay float32."""
    compile: bool = False
    """Forward passes through `torch.compile`; layers named to be explained run as written."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    micro_batch: MicroBatch | None = None
    """Images at once where a method needs many forward passes; None: adapts to memory."""
    progress: bool = True
    skip_bad: bool = False
    """Leave out pictures that cannot be read instead of stopping."""
    layer: str | None = None
    """Name of the explained module; None: the last feature map."""
    target: str = "label"
    """The class that is explained: the image's `label`, or the one that is `predicted`."""
