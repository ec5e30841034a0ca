"""Accuracy on the validation part: every image counts exactly once, whatever the number of processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from common.errors import UserError
from common.models.transform import ModelTransform
from train.data.batch import Batch, to_input
from train.data.loader import load
from train.settings import Settings


@dataclass
class Scores:
    """Means over the validation part."""

    top1: float
    """Percentage of pictures whose class has the largest logit."""
    top5: float
    """Percentage of pictures whose class is among the five largest logits."""
    loss: float
    """Cross-entropy."""
    images: int
    """Pictures counted."""


@torch.no_grad()
def validate(
    models: dict[str, nn.Module],
    loader: DataLoader[Batch],
    settings: Settings,
    transform: ModelTransform,
    accelerator: Accelerator,
) -> dict[str, Scores]:
    """Score several models on the same batches.

    Each process takes its own pictures; sums and counts are added up once, at the end. The models must be
    unwrapped: shares of unequal length would keep DDP waiting. They see batches of one size, the last one filled up
    with pictures that do not count, since a compiled model would be compiled anew for another.
    """
    sums = {name: torch.zeros(4, dtype=torch.float64, device=accelerator.device) for name in models}
    modes = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.eval()
    size = 0
    for batch in load(loader):
        size, real = max(size, len(batch.labels)), len(batch.labels)
        images = to_input(batch, transform, accelerator.device, settings.channels_last)
        if real < size:
            images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, size - real))
        labels = batch.labels.to(accelerator.device, non_blocking=True)
        for name, model in models.items():
            with accelerator.autocast():
                logits = model(images)
            logits = logits[:real].float()
            hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            count = torch.full_like(loss, real)
            sums[name] += torch.stack([hits[:, 0].sum(), hits.sum(), loss, count]).double()
    for name, model in models.items():
        model.train(modes[name])
    scores = {}
    for name, total in sums.items():
        top1, top5, loss, count = accelerator.reduce(total, "sum").tolist()
        if not count:
            raise UserError("the validation part of the data holds no pictures")
        scores[name] = Scores(100 * top1 / count, 100 * top5 / count, loss / count, int(count))
    return scores
