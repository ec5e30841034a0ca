"""Ablation-CAM (Desai and Ramaswamy, WACV 2020): the weight of a channel is what the score loses without it."""

from __future__ import annotations

import torch
from torch import Tensor

from evaluate.explainers.explainer import SIGNED, Explainer
from evaluate.network.query import Query


def ablation_cam(query: Query, relu: bool = True) -> Tensor:
    """ReLU(sum_k w_k A_k), w_k = (y - y_k) / y, where y_k is the score when channel k is 0 everywhere.

    At the last feature map only the head runs again, once for each channel; at another layer the network does.
    Where the head is affine, y - y_k is exactly the sum of g_k A_k over positions. pytorch-grad-cam departs from
    the paper where activations can be negative: it sets the channel to -1e7 instead of 0.

    Dividing by y flips the map's sign where y is negative, as in that library: for the least likely class of a
    photograph its correlation with HiResCAM is -0.90 to -0.98. It then shows what speaks against the class.

    Args:
        query: what is explained.
        relu: drop negative evidence; False: the signed map.

    Returns:
        (B, h, w), at least 0 with `relu`. A score of exactly 0 gives weights 0.
    """
    activations = query.activations
    features, output, channel_dim = activations.features, activations.output, activations.layout.channel_dim
    batch, channels = features.shape[:2]

    def ablate(rows: Tensor) -> tuple[Tensor, Tensor]:
        index, channel = rows // channels, rows % channels
        ablated = output[index]
        ablated.movedim(channel_dim, 1)[torch.arange(len(rows), device=rows.device), channel] = 0
        return ablated, index

    score = query.scores[:, None]
    without = query.score_outputs(batch * channels, ablate).view(batch, channels)
    weights = torch.where(score != 0, (score - without) / score, 0)
    signed = torch.einsum("bc,bchw->bhw", weights, features)
    return signed.relu() if relu else signed


ENTRIES = (Explainer("ablation_cam", ablation_cam, "perturbation", SIGNED),)
