"""The question that explainers answer: a model, images and targets; what they share is computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.models.transform import ModelTransform
from evaluate.network.layout import full
from evaluate.network.micro_batch import MicroBatch
from evaluate.network.passes import (
    Activations,
    default_layer,
    eager,
    find_layer,
    head_pass,
    layer_output,
    layer_pass,
    precision,
    run_head,
    uncompiled,
)
from evaluate.network.targets import ResolvedTargets, Targets, resolve_targets

Substrate = Literal["mean", "black"]
"""What hidden pixels become: the mean colour (0 in the normalised tensor) or black (0 in the image)."""


class Query:
    """One batch to be explained; the model must be in evaluation mode.

    Args:
        model: classifier, compiled or not.
        images: (B, 3, H, W), normalised.
        targets: see `evaluate.network.targets`.
        layer: name of the layer to explain; None: the last feature map (`default_layer`).
        transform: the model's preprocessing, for what masks the image before normalisation; None: what the
            model's `pretrained_cfg` says.
        micro_batch: images at once in explainers of many forward passes.
        bf16: features and perturbed images in bfloat16 (autocast).
        seed: of the explainers that draw at random.
        image_keys: a number for each image, such as its index in a data set, see `generators`; None: taken from
            its pixels.
        other_human: (B, S, S) human maps of other images, for the control that shows them.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Targets = None,
        layer: str | None = None,
        transform: ModelTransform | None = None,
        micro_batch: MicroBatch | None = None,
        bf16: bool = False,
        seed: int = 0,
        image_keys: Sequence[int] | None = None,
        other_human: Tensor | None = None,
    ) -> None:
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(f"images must be normalised floats (B, 3, H, W); got {images.dtype} {tuple(images.shape)}")
        self.model, self.images, self.layer, self.transform = model, images, layer, transform
        self.bare = uncompiled(model)
        self.asked = targets
        self.micro_batch = micro_batch or MicroBatch(None, images.device)
        self.bf16, self.seed, self.image_keys, self.other_human = bf16, seed, image_keys, other_human
        self.notes: list[str] = []
        """What an explainer found in this network that a reader of its maps must know."""

    @cached_property
    def activations(self) -> Activations:
        """Output, gradient and logits at the explained layer."""
        layer = self.layer or default_layer(self.model)
        if layer is None:
            return head_pass(self.model, self.images, self.asked, self.bf16)
        return layer_pass(self.model, self.images, layer, self.asked, self.bf16)

    @property
    def features(self) -> Tensor:
        """(B, C, h, w) float32."""
        return self.activations.features

    @property
    def gradients(self) -> Tensor:
        """(B, C, h, w) of each image's target score with respect to the features."""
        return self.activations.gradients

    @cached_property
    def logits(self) -> Tensor:
        """(B, K) of the unmodified images, from the pass at the layer if there was one."""
        if "activations" in self.__dict__:
            return self.activations.logits
        with torch.no_grad():
            return self.forward(self.images)

    @cached_property
    def targets(self) -> ResolvedTargets:
        """What is explained in each image."""
        if "activations" in self.__dict__:
            return self.activations.targets
        return resolve_targets(self.asked, self.logits)

    @property
    def scores(self) -> Tensor:
        """(B,) target score of the unmodified images."""
        return self.targets.scores(self.logits)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K), at least float32, with a graph where gradients are enabled."""
        with precision(images, self.bf16):
            return full(self.model(images))

    def read(self, logits: Tensor, index: Tensor, probability: bool = False) -> Tensor:
        """(N,) target score of each row's image, or softmax probability of its target class."""
        if not probability:
            return self.targets.scores(logits, index)
        classes = self.targets.required_classes("a probability")
        return logits.softmax(1).gather(1, classes[index][:, None])[:, 0]

    @torch.no_grad()
    def score_perturbed(
        self, count: int, perturb: Callable[[Tensor], tuple[Tensor, Tensor]], probability: bool = False
    ) -> Tensor:
        """Target scores of many perturbed images, made slice by slice.

        Args:
            count: how many.
            perturb: rows (n,) int64 of `range(count)` -> images (n, 3, H, W) and the index (n,) of the
                image each one comes from.
            probability: softmax probabilities instead of target scores.

        Returns:
            (count,) float32.
        """

        def work(part: slice) -> Tensor:
            images, index = perturb(torch.arange(part.start, part.stop, device=self.images.device))
            return self.read(self.forward(images), index, probability)

        return self.micro_batch.run(count, work)

    @torch.no_grad()
    def score_outputs(self, count: int, change: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """Target scores after changing the explained layer's output; at the last map only the head runs.

        Args:
            count: how many.
            change: rows (n,) -> outputs of the layer (n, ...) as `activations.layout` says, freshly made,
                and the index (n,) of the image each one comes from.

        Returns:
            (count,) float32.
        """
        name = self.activations.layer

        def work(part: slice) -> Tensor:
            outputs, index = change(torch.arange(part.start, part.stop, device=self.images.device))
            if name is None:
                logits = run_head(self.bare, outputs)
            else:
                with layer_output(find_layer(self.bare, name), lambda output: outputs.to(output.dtype)):
                    logits = self.forward_eager(self.images[index])
            return self.read(full(logits), index)

        return self.micro_batch.run(count, work)

    def forward_eager(self, images: Tensor) -> Tensor:
        """As `forward`, but hooks work even where the model is compiled."""
        with eager(), precision(images, self.bf16):
            return full(self.bare(images))

    def hidden(self, substrate: Substrate) -> Tensor:
        """Normalised colour of hidden pixels, (1, 3, 1, 1).

        Raises:
            UserError: black is asked for, and the model's mean and std are unknown.
        """
        channels = self.images.shape[1]
        if substrate == "mean":
            return self.images.new_zeros(1, channels, 1, 1)
        if substrate != "black":
            raise UserError(f"substrate {substrate!r}; take mean or black")
        mean, std = self.statistics()
        return (-self.images.new_tensor(mean) / self.images.new_tensor(std)).view(1, channels, 1, 1)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation by which pixels of 0..1 were normalised, colour by colour.

        Raises:
            UserError: they are unknown.
        """
        if self.transform is not None:
            return self.transform.mean, self.transform.std
        config = getattr(self.bare, "pretrained_cfg", None)
        if not config:
            raise UserError("changing pixels before normalisation needs the model's mean and std; give its transform")
        return tuple(config["mean"]), tuple(config["std"])

    def mask(self, images: Tensor, masks: Tensor, substrate: Substrate) -> Tensor:
        """Images (N, 3, H, W) times masks (N, H, W); what is hidden shows the substrate.

        With `black` it equals normalise(mask * image in 0..1).
        """
        keep = masks[:, None].to(images.dtype)
        return images * keep + self.hidden(substrate) * (1 - keep)

    def upsample(self, maps: Tensor, align_corners: bool = False) -> Tensor:
        """Maps (N, h, w) -> (N, H, W) of the images, bilinear."""
        size = self.images.shape[2:]
        return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=align_corners)[:, 0]

    def generator(self) -> torch.Generator:
        """For draws that all images share; on the CPU, so that a seed means the same on every device."""
        return torch.Generator().manual_seed(self.seed)

    def generators(self) -> list[torch.Generator]:
        """One for each image, from the seed and its key, so that its draws do not depend on the rest of its batch."""
        keys: Sequence[int] = self.image_keys or [
            _digest(image.float().cpu().contiguous().numpy().tobytes()) for image in self.images
        ]
        if len(keys) != len(self.images):
            raise ValueError(f"{len(keys)} image keys for {len(self.images)} images")
        return [torch.Generator().manual_seed(_digest(f"{self.seed} {key}".encode())) for key in keys]


def _digest(data: bytes) -> int:
    """32 bits: a generator on the CPU takes no more."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "big")
