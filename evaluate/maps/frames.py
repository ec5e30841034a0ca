"""The two protocols for laying a human map over what a model saw; always named beside a score, never mixed.

`paper`: what the study's published code computes. The human map covers the whole frame while the model sees
its own centre crop; an image whose map is constant is left out of the mean.
`aligned`: the human map is cut to the model's field of view, so that both maps cover the same part of the
image; an image whose map is constant scores 0 and is counted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluate.maps.arithmetic import constant_as_before

PROTOCOLS = ("paper", "aligned")


def frame_human_map(human: Tensor, seen: float, protocol: str) -> Tensor:
    """Human maps in a protocol's frame.

    Args:
        human: (B, S, S) float32 over the whole (square) frame.
        seen: side of the model's field of view, as a share of the frame's.
        protocol: a name of `PROTOCOLS`.

    Returns:
        (B, S, S) float32; for `aligned` the central part, bilinearly resized.
    """
    if protocol == "paper" or seen >= 1:
        return human
    size = human.shape[-1]
    # Centres of the output's pixels in normalised coordinates, where the frame spans -1..1.
    line = ((torch.arange(size, device=human.device) + 0.5) / size * 2 - 1) * seen
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack((columns, rows), -1).expand(len(human), -1, -1, -1)
    framed = F.grid_sample(human[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return constant_as_before(human, framed[:, 0]).contiguous()
