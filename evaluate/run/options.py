"""Options of a measurement: explainers, metrics, protocols, precision, device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from evaluate.explainers.explainer import Explainer
from evaluate.explainers.registry import EXPLAINERS
from evaluate.metrics.measure import Measure
from evaluate.named import Chosen
from evaluate.network.micro_batch import MicroBatch

DEFAULT_EXPLAINERS = EXPLAINERS.choose(["grad_cam", "threshold_grad_cam"])


@dataclass(frozen=True)
class RunOptions:
    """How a checkpoint is measured."""

    explainers: Mapping[str, Chosen[Explainer]] = field(default_factory=lambda: DEFAULT_EXPLAINERS)
    """By label, as `EXPLAINERS.choose` gives them."""
    protocols: tuple[str, ...] = ("paper",)
    measures: Mapping[str, Chosen[Measure]] = field(default_factory=dict)
    """Further metrics of every explainer, as `MEASURES.choose` gives them; they do not depend on the protocol."""
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

    @property
    def from_images(self) -> dict[str, Chosen[Explainer]]:
        """The explainers that need nothing but the model and an image."""
        return {label: chosen for label, chosen in self.explainers.items() if not chosen.entry.needs}
