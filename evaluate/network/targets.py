"""What is explained in each image: its true label, the predicted class, any class, or any function of the logits."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import torch
from torch import Tensor

ScoreFunction = Callable[[Tensor], Tensor]
"""Logits (N, K) -> the explained scalar of each row, (N,); rows must not influence one another."""

Target = int | ScoreFunction | None
"""A class index, a function of the logits, or None: the class the model predicts for that image."""

Targets = Tensor | Sequence[Target] | Target
"""One target for all images, or one per image."""


@dataclass(frozen=True)
class ResolvedTargets:
    """One target per image, fixed: `None` has become the class predicted for the unmodified image."""

    classes: Tensor | None
    """(B,) int64, or None if a target is a function."""
    functions: tuple[ScoreFunction, ...] = ()
    """One per image, empty if all targets are classes."""

    def scores(self, logits: Tensor, index: Tensor | None = None) -> Tensor:
        """The explained scalar of each row of `logits`.

        Args:
            logits: (N, K).
            index: (N,) int64, the image each row belongs to; None: row i belongs to image i.

        Returns:
            (N,), differentiable with respect to `logits`.
        """
        if self.classes is not None:
            classes = self.classes if index is None else self.classes[index]
            return logits.gather(1, classes[:, None])[:, 0]
        owners = range(len(logits)) if index is None else index.tolist()
        rows: dict[int, list[int]] = {}
        for row, image in enumerate(owners):
            rows.setdefault(image, []).append(row)
        out = logits.new_zeros(len(logits))
        for image, members in rows.items():
            found = self.functions[image](logits[members])
            if found.shape != (len(members),):
                raise ValueError(f"a target function must turn logits (N, K) into (N,); it gave {tuple(found.shape)}")
            out = out.index_put((torch.tensor(members, device=logits.device),), found)
        return out

    def required_classes(self, purpose: str) -> Tensor:
        """The (B,) classes, for what is defined only for classes.

        Raises:
            ValueError: a target is a function.
        """
        if self.classes is None:
            raise ValueError(f"{purpose} needs a class for each image; a function of the logits was given")
        return self.classes


def resolve_targets(targets: Targets, logits: Tensor) -> ResolvedTargets:
    """Fix what is explained in each image.

    Args:
        targets: see `Targets`.
        logits: (B, K) of the unmodified images.

    Raises:
        ValueError: there are not as many targets as images, or a class does not exist.
    """
    count, num_classes = logits.shape
    predicted = logits.argmax(1)
    if targets is None:
        return ResolvedTargets(predicted)
    if callable(targets) and not isinstance(targets, Tensor):
        return ResolvedTargets(None, (targets,) * count)
    if isinstance(targets, Tensor):
        if targets.ndim > 1 or targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise ValueError(f"targets must be class indices of shape (B,); got {targets.dtype} {tuple(targets.shape)}")
        targets = targets.expand(count) if targets.ndim == 0 else targets
        _check_count(len(targets), count)
        classes = targets.to(logits.device, torch.int64)
        _check_range(classes, num_classes)
        return ResolvedTargets(classes)

    chosen = list(targets) if isinstance(targets, Iterable) else [targets] * count
    _check_count(len(chosen), count)
    if any(callable(target) for target in chosen):
        return ResolvedTargets(None, tuple(_function(t, p) for t, p in zip(chosen, predicted.tolist())))
    given = torch.tensor([-1 if t is None else _index(t) for t in chosen], device=logits.device)
    open_places = torch.tensor([t is None for t in chosen], device=logits.device)
    classes = torch.where(open_places, predicted, given)
    _check_range(classes, num_classes)
    return ResolvedTargets(classes)


def _index(target: Target) -> int:
    if not isinstance(target, SupportsIndex) or isinstance(target, bool):  # NumPy's integers count too
        raise ValueError(f"a target is a class index, a function of the logits or None; got {target!r}")
    return operator.index(target)


def _function(target: Target, predicted: int) -> ScoreFunction:
    if callable(target):
        return target
    chosen = predicted if target is None else _index(target)

    def logit(logits: Tensor) -> Tensor:
        _check_range(torch.tensor(chosen), logits.shape[1])
        return logits[:, chosen]

    return logit


def _check_count(given: int, images: int) -> None:
    if given != images:
        raise ValueError(f"{given} targets for {images} images; give one per image, or a single one for all")


def _check_range(classes: Tensor, num_classes: int) -> None:
    if bool(((classes < 0) | (classes >= num_classes)).any()):
        raise ValueError(f"target classes {classes.tolist()} do not all lie in 0 .. {num_classes - 1}")
