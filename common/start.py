"""Weights that training starts from: a checkpoint of ours or a file of the authors, for the plain model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from common.checkpoint import load_checkpoint
from common.errors import UserError
from common.models.published import our_names, read_published
from common.models.zoo import lookup
from common.weights import load_state


def load_plain(model: nn.Module, name: str, source: Path) -> None:
    """Load a named model's weights before its surgery.

    Args:
        model: as `common.models.zoo.create_plain` made it; receives the values in place.
        name: its name.
        source: a checkpoint folder or a weight file of a plain model, under our names or the original ones.

    Raises:
        UserError: it cannot be read, is of a DCLS model, or does not fit.
    """
    if source.is_dir():
        state = load_checkpoint(source)[0].state_dict()
    else:
        state = our_names(read_published(source, None), lookup(name), model)
    if any(key.endswith(".P") for key in state):
        raise UserError(
            f"{source} holds a DCLS model; give the weights of a plain one, as its surgery comes after them"
        )
    load_state(model, state, str(source))
