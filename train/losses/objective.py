"""The objective: the forward pass of a micro-batch and the named terms of its loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.losses.classification import Classification, correct
from train.losses.repulsion import Repulsion
from train.losses.terms import Forward, Term
from train.settings import LOSS_TERMS, Settings


@dataclass(frozen=True)
class Terms:
    """What a micro-batch adds to an update."""

    total: Tensor
    """What is back-propagated: a scalar with its graph."""
    counted: dict[str, Tensor]
    """By the names of the meters, without a graph: each term summed over the images, or as it is where it is one of the
    weights alone; how many images are classified correctly; how many there are."""


class Objective:
    """What a run minimises: the mean of its terms over the images of an update, and those of the weights once.

    Args:
        model: not wrapped.
        settings: of the run.
        micro_batches: of an update, in each process.

    Raises:
        UserError: a term does not fit the model.
    """

    def __init__(self, model: nn.Module, settings: Settings, micro_batches: int) -> None:
        self.micro_batches = micro_batches
        known: dict[str, Term] = {"repulsion": Repulsion(model, settings.positions)}
        known |= {name: getattr(settings.loss, name) for name in LOSS_TERMS}
        self.added = {name: term for name, term in known.items() if term.weight}
        self.terms: dict[str, Term] = {"loss": Classification(settings.loss), **self.added}

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, epoch: int, last: bool) -> Terms:
        """The terms of a micro-batch.

        Args:
            model: as Accelerate wrapped it.
            images: (B, 3, H, W), normalised.
            targets: (B, C), soft.
            epoch: counted from 0.
            last: this is the last micro-batch of the update, with which terms of the weights alone are computed.
        """
        logits = model(images)
        seen = Forward(model, images, targets, logits, epoch)
        total, counted = torch.zeros((), device=logits.device), {}
        count = torch.full((), len(targets), dtype=torch.float32, device=logits.device)
        for name, term in self.terms.items():
            value = term(seen) if term.of_images or last else None
            if value is None:
                continue
            value = term.weight * value
            total = total + (value / self.micro_batches if term.of_images else value)
            counted[name] = value.detach() * count if term.of_images else value.detach()
        return Terms(total, {**counted, "correct": correct(logits, targets), "images": count})

    def means(self, counted: dict[str, float]) -> dict[str, float]:
        """Each term's mean, by name, from the sums that the meters hold; where terms are added, their `total` too."""
        over = {name: counted["images" if term.of_images else "updates"] for name, term in self.terms.items()}
        means = {name: counted[name] / number for name, number in over.items()}
        return {**means, "total": sum(means.values())} if self.added else means
