"""The repulsive loss of the positions, squared, for recipes that add it."""

from __future__ import annotations

from torch import Tensor, nn

from common.errors import UserError
from common.surgery import position_groups, repulsive_loss
from train.losses.terms import Forward, Term
from train.settings import PositionSettings


class Repulsion(Term):
    """The repulsive term, L_rep squared, from the recipe's epoch on; not even computed before."""

    of_images = False

    def __init__(self, model: nn.Module, positions: PositionSettings) -> None:
        if positions.repulsion and not position_groups(model):
            raise UserError("positions.repulsion=true, but the model has no DCLS layers; take a _dcls model or false")
        self.model, self.from_epoch = model, positions.repulsion_from_epoch
        self.weight = float(positions.repulsion)

    def __call__(self, seen: Forward) -> Tensor | None:
        """L_rep squared, with its graph to the positions, or None."""
        if seen.epoch < self.from_epoch:
            return None
        return repulsive_loss(self.model).square()
