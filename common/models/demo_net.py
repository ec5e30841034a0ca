"""The network of the demo pair: trained on two CPU cores in minutes, built like its large relatives.

A strided stem, then stages of residual blocks whose 7x7 depthwise convolutions `common.surgery` can replace by
DCLS layers. BatchNorm, not the LayerNorm and layer scale of ConvNeXt, which hardly learn in so few updates.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn


def _conv_norm_act(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


class Block(nn.Module):
    """Residual block, (B, C, H, W) -> the same: a 7x7 depthwise convolution, then two pointwise ones."""

    def __init__(self, width: int, expansion: int = 2) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, expansion * width, 1)
        self.act = nn.ReLU(inplace=True)
        self.project = nn.Conv2d(expansion * width, width, 1, bias=False)
        # Each block begins close to the identity.
        nn.init.normal_(self.project.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.project(self.act(self.expand(self.norm(self.depthwise(x)))))


class DemoNet(nn.Module):
    """Image classifier with timm's interface; 0.17 M parameters with the default arguments.

    Args:
        num_classes: number of logits; 0 leaves the head out.
        in_chans: channels of the image.
        widths: channels of each stage. Neighbours must differ, as `common.surgery` tells stages by them.
        depths: blocks in each stage. Most stand in the first, at a quarter of the image's resolution: a shape
            is learnt there much sooner than at an eighth.

    Shape: (B, in_chans, H, W) -> (B, num_classes). Each stage after the first halves the map, so with two
    stages the last map, the output of `stages`, has H/8 x W/8 pixels (rounded up).

    Raises:
        ValueError: `widths` and `depths` differ in length, are empty, or neighbouring widths are equal.
    """

    def __init__(
        self,
        num_classes: int = 12,
        in_chans: int = 3,
        widths: tuple[int, ...] = (64, 96),
        depths: tuple[int, ...] = (3, 1),
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(depths):
            raise ValueError(f"widths {widths} and depths {depths} need one entry for each stage")
        if any(one == following for one, following in pairwise(widths)):
            raise ValueError(f"neighbouring stages have equal widths {widths}: their DCLS positions would be shared")
        self.num_classes = num_classes
        self.num_features = widths[-1]
        self.stem = nn.Sequential(*_conv_norm_act(in_chans, 24, 5, 2), *_conv_norm_act(24, widths[0], 3, 2))
        layers: list[nn.Module] = []
        for stage, (width, depth) in enumerate(zip(widths, depths)):
            if stage > 0:
                layers += _conv_norm_act(widths[stage - 1], width, 3, 2)
            layers += [Block(width) for _ in range(depth)]
        # The map that Grad-CAM weighs is normalised and never negative.
        self.stages = nn.Sequential(*layers, nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True))
        self.head = self._make_head(num_classes)
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (in_chans, 64, 64),
            "num_classes": num_classes,
            "mean": (0.5,) * in_chans,
            "std": (0.25,) * in_chans,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "first_conv": "stem.0",
            "classifier": "head",
        }
        self.default_cfg = self.pretrained_cfg

    def _make_head(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The last layer: `nn.Linear`, or `nn.Identity` without classes."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a freshly initialised head in the place of the present one, on the same device and in the same type."""
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head = self._make_head(num_classes).to(like.device, like.dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> last map (B, num_features, H/8, W/8), not negative."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last map (B, C, h, w) -> logits (B, num_classes), or the pooled features (B, C) if `pre_logits`."""
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))
