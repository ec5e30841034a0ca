"""Augmentation: timm's for training, the model's own transform for validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from PIL import Image
from timm.data import Mixup, auto_augment, create_transform
from torch import Tensor
from torch.nn import functional as F

from common.models.transform import ModelTransform
from common.models.zoo import lookup
from train.randomness import seeded
from train.settings import Settings


def model_transform(settings: Settings) -> ModelTransform:
    """Preprocessing of the published model: that of the zoo, scaled to `data.eval_size` if one is given."""
    transform = lookup(settings.model).transform
    size = settings.data.eval_size
    if size is None or size == transform.crop:
        return transform
    return replace(transform, resize=round(transform.resize * size / transform.crop), crop=size)


def training_transform(settings: Settings) -> Callable[[Image.Image], Tensor]:
    """PIL image -> uint8 (3, S, S). Draws from the global generators: call it within `seeded`."""
    augment = settings.augment
    transform = create_transform(
        settings.data.image_size,
        is_training=True,
        scale=(augment.scale[0], augment.scale[1]),
        hflip=augment.hflip,
        color_jitter=augment.color_jitter,
        auto_augment=augment.auto,
        interpolation=augment.interpolation,
        mean=model_transform(settings).mean,  # where an operation leaves a part empty
        use_prefetcher=True,  # normalisation and erasing come later
    )
    for step in transform.transforms:
        for operation in chain(getattr(step, "ops", ()), *getattr(step, "policy", ())):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **unused: Any) -> Image.Image:
    """timm's operation. It asks Pillow for 0 bits at times, which gave a black image until Pillow 13 refused it."""
    return auto_augment.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


class BatchMixing:
    """Soft targets of a batch, mixed by mixup and cutmix where the recipe says so.

    A mixed batch is a function of (seed, update, micro-batch, rank) and its images.
    """

    def __init__(self, settings: Settings, num_classes: int, rank: int) -> None:
        augment = settings.augment
        self.seed, self.rank = settings.seed, rank
        self.num_classes, self.smoothing = num_classes, settings.loss.smoothing
        self.mixup = None
        if augment.mixup > 0 or augment.cutmix > 0:
            self.mixup = Mixup(
                augment.mixup,
                augment.cutmix,
                prob=augment.mix_prob,
                switch_prob=augment.switch_prob,
                label_smoothing=self.smoothing,
                num_classes=num_classes,
            )

    def __call__(self, images: Tensor, labels: Tensor, update: int, micro: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and labels (B,) -> images and targets (B, C) that sum to 1."""
        if self.mixup is not None:
            with seeded(self.seed, update, micro, self.rank):
                return self.mixup(images, labels)
        targets = F.one_hot(labels, self.num_classes).to(torch.float32)
        return images, targets * (1 - self.smoothing) + self.smoothing / self.num_classes
