"""All that the training loop works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from common.models.transform import ModelTransform
from train.data.batch import Batch, BatchSource
from train.optimizers import Schedule
from train.runs.run_folder import RunFolder
from train.runs.state import TrainState
from train.settings import Settings
from train.watching.monitor import Monitor
from train.watching.watch import Watch

# Sums on the device since the last log point.
METERS = ("loss", "repulsion", "correct", "images", "grad_norm", "steps", "updates")


@dataclass
class Session:
    """All that the loop works with."""

    settings: Settings
    accelerator: Accelerator
    state: TrainState
    wrapped: nn.Module
    """The model as Accelerate wrapped it; `state.model` is the same without."""
    schedule: Schedule
    train_source: BatchSource
    val_loader: DataLoader[Batch]
    transform: ModelTransform
    folder: RunFolder
    about: dict[str, Any]
    """`settings`, `command` and `classes`, which each snapshot keeps."""
    monitor: Monitor
    watch: Watch
