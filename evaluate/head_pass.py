"""One pass for all gradient explainers: features without gradients, then the head alone, differentiated.

Grad-CAM at the last feature map needs the gradient of a logit with respect to that map only; the backbone
never has to be differentiated.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError


@dataclass
class HeadPass:
    """What the explainers at the last feature map share."""

    features: Tensor
    """(B, C, h, w) float32, contiguous, detached."""
    gradients: Tensor
    """(B, C, h, w) of each image's target logit with respect to `features`."""
    logits: Tensor
    """(B, K) float32, detached."""


def head_pass(model: nn.Module, images: Tensor, targets: Tensor | None = None, bf16: bool = False) -> HeadPass:
    """Run a model once and differentiate its head.

    Args:
        model: in evaluation mode, with timm's `forward_features` and `forward_head`.
        images: (B, 3, H, W), normalised.
        targets: (B,) class whose logit is explained; None: the predicted class.
        bf16: compute the features in bfloat16 (autocast); the head is always float32.

    Raises:
        UserError: the model does not give a feature map of four dimensions.
    """
    timm_model: Any = model  # nn.Module's type knows neither forward_features nor forward_head
    autocast = torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext()
    with torch.no_grad(), autocast:
        features = timm_model.forward_features(images)
    if features.ndim != 4:
        raise UserError(
            f"{type(model).__name__} gives features of shape {tuple(features.shape)}; explaining it needs a "
            "feature map (B, C, h, w)"
        )
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    # Contiguous and float32, so that the maps do not depend on the layout the backbone computed in.
    features = features.float().contiguous().detach()
    with torch.enable_grad():
        leaf = features.requires_grad_()
        logits = timm_model.forward_head(leaf)
        chosen = logits.argmax(1) if targets is None else targets
        (gradients,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), leaf)
    features = features.detach()
    if channels_last:
        features, gradients = features.permute(0, 3, 1, 2), gradients.permute(0, 3, 1, 2)
    return HeadPass(features.contiguous(), gradients.contiguous(), logits.detach().float())
