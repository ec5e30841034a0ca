"""Controls: maps that explain nothing, to show what a metric rewards."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError
from evaluate.explainers.explainer import Explainer
from evaluate.network.query import Query


def random_map(query: Query) -> Tensor:
    """Independent uniform noise at each pixel from each image's generator, (B, H, W).

    Where images have keys, as in the command, an image keeps its noise when its pixels or the model change: metrics
    that explain again find it perfectly stable.
    """
    drawn = [torch.rand(query.images.shape[2:], generator=g) for g in query.generators()]
    return torch.stack(drawn).to(query.images.device)


def centre(query: Query, sigma: float = 0.25) -> Tensor:
    """A Gaussian around the middle of the frame, the same for every image, (B, H, W).

    Args:
        query: gives the size.
        sigma: standard deviation as a share of each side.
    """
    batch, _, height, width = query.images.shape
    rows, columns = (
        torch.exp(-(((torch.arange(n, device=query.images.device) + 0.5) / n - 0.5) ** 2) / (2 * sigma**2))
        for n in (height, width)
    )
    return (rows[:, None] * columns[None, :]).expand(batch, -1, -1).clone()


def fake_cam(query: Query) -> Tensor:
    """Fake-CAM (Poppi et al., CVPR workshops 2021): 1 everywhere, 0 at the top left pixel, (B, H, W).

    It hides nothing, and so wins Average Drop and Average Increase.
    """
    batch, _, height, width = query.images.shape
    maps = torch.ones(batch, height, width, device=query.images.device)
    maps[:, 0, 0] = 0
    return maps


def other_human(query: Query) -> Tensor:
    """The human map of another image, (B, S, S): it knows where people look, but not in this image.

    Raises:
        UserError: no human maps are given.
    """
    if query.other_human is None:
        raise UserError("other_human needs human maps, and none are given")
    return query.other_human


ENTRIES = (
    Explainer("random", random_map, "control", at_layer=False, note="control: explains nothing"),
    Explainer("centre", centre, "control", at_layer=False, note="control: explains nothing"),
    Explainer("fake_cam", fake_cam, "control", at_layer=False, note="control: hides nothing"),
    Explainer("other_human", other_human, "control", at_layer=False, needs=("human",)),
)
