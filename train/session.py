"""All that the training loop works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from common.models.transform import ModelTransform
from train.data.batch import Batch, BatchSource
from train.losses.objective import Objective
from train.optimizers import Schedule
from train.runs.run_folder import RunFolder
from train.runs.state import TrainState
from train.settings import Settings
from train.watching.monitor import Monitor
from train.watching.watch import Watch


@dataclass
class Session:
    """All that the loop works with."""

    settings: Settings
    accelerator: Accelerator
    state: TrainState
    wrapped: nn.Module
    """The model as Accelerate wrapped it; `state.model` is the same without."""
    objective: Objective
    schedule: Schedule
    train_source: BatchSource
    val_loader: DataLoader[Batch]
    transform: ModelTransform
    folder: RunFolder
    about: dict[str, Any]
    """`settings`, `command` and `classes`, which each snapshot keeps."""
    monitor: Monitor
    watch: Watch
