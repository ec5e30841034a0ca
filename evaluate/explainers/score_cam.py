"""Score-CAM (Wang et al., CVPR workshops 2020): the weight of a channel is the score of the image that it masks."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError
from evaluate.explainers.explainer import SIGNED, Explainer
from evaluate.maps.arithmetic import is_constant, min_max
from evaluate.network.query import Query, Substrate


def score_cam(
    query: Query,
    weighting: str = "probability",
    substrate: Substrate = "mean",
    align_corners: bool = False,
    relu: bool = True,
) -> Tensor:
    """ReLU(sum_k w_k A_k), w_k from the score of the image masked by minmax(up(A_k)).

    One forward pass for each channel of each image, in slices over all images of the batch. The authors' code
    (haofanwang/Score-CAM) departs from the paper: it weights by probability, and takes no softmax over channels.
    Maps on 0..1 are up to 0.30 apart (correlation 0.971; MobileNetV2 at 128 px): never compare the two.

    Args:
        query: what is explained.
        weighting: `probability` - the softmax probability of the target class, constant channels left out: the
            authors' code; `softmax` - of the target's score over channels: the paper's (softmax of the increase over a
            baseline is the same: the baseline cancels) and pytorch-grad-cam's.
        substrate: colour of hidden pixels; `mean`, as both codes multiply the normalised tensor.
        align_corners: of the upsampling; pytorch-grad-cam uses True, the authors' code False.
        relu: drop negative evidence; False: the signed map.

    Returns:
        (B, h, w), at least 0 with `relu`.

    Raises:
        UserError: unknown weighting.
        ValueError: `probability`, and a target is not a class.
    """
    if weighting not in ("softmax", "probability"):
        raise UserError(f"score_cam: weighting {weighting!r}; take softmax or probability")
    features, images = query.features, query.images
    batch, channels = features.shape[:2]
    maps = features.flatten(0, 1)

    def perturb(rows: Tensor) -> tuple[Tensor, Tensor]:
        index = rows // channels
        masks = min_max(query.upsample(maps[rows], align_corners))
        return query.mask(images[index], masks, substrate), index

    scores = query.score_perturbed(batch * channels, perturb, weighting == "probability").view(batch, channels)
    if weighting == "softmax":
        weights = scores.softmax(1)
    else:
        weights = scores.flatten().where(~is_constant(maps), 0).view(batch, channels)
    signed = torch.einsum("bc,bchw->bhw", weights, features)
    return signed.relu() if relu else signed


ENTRIES = (Explainer("score_cam", score_cam, "perturbation", SIGNED),)
