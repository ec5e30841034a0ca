"""What a metric looks at: a batch of images, the maps that explain them, and what is known of the images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.models.transform import ModelTransform
from evaluate.maps.arithmetic import is_constant, min_max, resize_saliency
from evaluate.maps.boxes import box_mask, clip_boxes
from evaluate.network.micro_batch import MicroBatch
from evaluate.network.query import Query, Substrate


class Case:
    """One batch under one explainer. The model must be in evaluation mode.

    Args:
        model: the classifier.
        images: (B, 3, H, W), normalised.
        maps: (B, h, w) saliency at any resolution.
        targets: (B,) class that was explained and is asked for; None: the predicted ones.
        transform: the model's preprocessing; None: what timm says of it.
        labels: (B,) true classes, for metrics that ask whether the prediction is right; None: the targets.
        human: (B, H, W) human maps in the frame of the images.
        boxes: for each image its objects, (n, 4) as x0, y0, x1, y1 in pixels of the images (see
            `evaluate.maps.boxes.boxes_in_view`).
        masks: (B, H, W) bool, the objects' pixels; used instead of the boxes where a region is needed.
        explain: model, images (B, 3, H, W) -> maps of the same explainer, targets and random draws, for metrics
            that explain changed images or a changed model.
        micro_batch: images at once.
        bf16: perturbed images in bfloat16 (autocast).
        seed: of random perturbations.
        image_keys: see `Query`.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        maps: Tensor,
        targets: Tensor | None = None,
        *,
        transform: ModelTransform | None = None,
        labels: Tensor | None = None,
        human: Tensor | None = None,
        boxes: Sequence[Tensor] | None = None,
        masks: Tensor | None = None,
        explain: Callable[[nn.Module, Tensor], Tensor] | None = None,
        micro_batch: MicroBatch | None = None,
        bf16: bool = False,
        seed: int = 0,
        image_keys: Sequence[int] | None = None,
    ) -> None:
        self.images = images
        self.query = Query(model, images, targets, None, transform, micro_batch, bf16, seed, image_keys)
        self.human, self.masks = human, masks
        self._labels = labels
        self._take(maps, explain)
        height, width = images.shape[2:]
        self.boxes = None if boxes is None else [clip_boxes(b.to(images.device), height, width) for b in boxes]

    def _take(self, maps: Tensor, explain: Callable[[nn.Module, Tensor], Tensor] | None) -> None:
        if maps.ndim != 3 or len(maps) != len(self.images):
            shape = tuple(self.images.shape)
            raise ValueError(f"maps of shape {tuple(maps.shape)} for images {shape}; expected (B, h, w)")
        self.maps, self._explain = maps, explain
        self._behind: dict[str, Tensor] = {}

    def under(self, maps: Tensor, explain: Callable[[nn.Module, Tensor], Tensor] | None = None) -> Case:
        """The same images under another explainer; their logits are not computed again. See `Case`."""
        other = copy.copy(self)
        for of_maps in ("resized", "saliency", "constant"):
            other.__dict__.pop(of_maps, None)
        other._take(maps, explain)
        return other

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def targets(self) -> Tensor:
        """(B,) classes explained."""
        return self.query.targets.required_classes("a metric")

    @property
    def labels(self) -> Tensor:
        """(B,) true classes."""
        return self.targets if self._labels is None else self._labels.to(self.images.device)

    @property
    def predicted(self) -> Tensor:
        """(B,) classes predicted for the unmodified images."""
        return self.query.logits.argmax(1)

    @cached_property
    def resized(self) -> Tensor:
        """(B, H, W) the maps at the images' resolution, bilinear, float32."""
        return resize_saliency(self.maps, self.size)

    @cached_property
    def saliency(self) -> Tensor:
        """(B, H, W) in 0..1, min-max at the images' resolution; a constant map is 0 everywhere."""
        return min_max(self.resized)

    @cached_property
    def constant(self) -> Tensor:
        """(B,) bool, maps that are constant."""
        return is_constant(self.resized)

    @cached_property
    def region(self) -> Tensor:
        """(B, H, W) bool, pixels of the objects: the masks, or the union of the boxes."""
        if self.masks is not None:
            return self.masks.to(self.images.device, torch.bool)
        return torch.stack([box_mask(b, *self.size).any(0) for b in self.objects()])

    def objects(self) -> list[Tensor]:
        """For each image its boxes (n, 4) within the view.

        Raises:
            UserError: none were given.
        """
        if self.boxes is None:
            raise UserError("this metric needs object boxes or masks; the data set has none")
        return self.boxes

    @property
    def can_explain(self) -> bool:
        """Whether `explain` works."""
        return self._explain is not None

    def explain(self, model: nn.Module, images: Tensor) -> Tensor:
        """(B, h, w) float32 maps of other images, or of another model, by the same explainer.

        Raises:
            UserError: none was given.
        """
        if self._explain is None:
            raise UserError("this metric explains again; give it the explainer")
        return self._explain(model, images).float()

    def probabilities(self, classes: Tensor) -> Tensor:
        """(B,) softmax probability of a class for the unmodified images."""
        return self.query.logits.softmax(1).gather(1, classes[:, None])[:, 0]

    def behind_map(self, substrate: Substrate) -> Tensor:
        """(B,) probability of the targets for the images times their maps; computed once for all metrics."""

        def make(rows: Tensor) -> tuple[Tensor, Tensor]:
            return self.query.mask(self.images[rows], self.saliency[rows], substrate), rows

        if substrate not in self._behind:
            self._behind[substrate] = self.perturbed(len(self.images), make, self.targets)
        return self._behind[substrate]

    @torch.no_grad()
    def perturbed(self, count: int, make: Callable[[Tensor], tuple[Tensor, Tensor]], classes: Tensor) -> Tensor:
        """Softmax probabilities of many perturbed images, made slice by slice; see `Query.score_perturbed`.

        Args:
            count: how many.
            make: rows (n,) -> images (n, 3, H, W), index (n,) of the image each one comes from.
            classes: (B,) the class asked for in each image.

        Returns:
            (count,).
        """

        def work(part: slice) -> Tensor:
            images, index = make(torch.arange(part.start, part.stop, device=self.images.device))
            return self.query.forward(images).softmax(1).gather(1, classes[index][:, None])[:, 0]

        return self.query.micro_batch.run(count, work)
