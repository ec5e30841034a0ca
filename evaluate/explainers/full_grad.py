"""FullGrad (Srinivas and Fleuret, NeurIPS 2019): the shares of the input and of every bias in the score."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from evaluate.explainers.explainer import Explainer
from evaluate.network.layout import full
from evaluate.network.query import Query

_BATCH_NORM = inspect.signature(F.batch_norm)


@dataclass
class Decomposition:
    """For a network of convolutions, linear layers, batch norms and ReLUs: score = input term + bias terms."""

    input_term: Tensor
    """x * dy/dx, (B, 3, H, W)."""
    bias_terms: list[Tensor] = field(default_factory=list)
    """b * dy/d(output) of every convolution and batch norm, (B, C, h, w)."""
    linear_terms: list[Tensor] = field(default_factory=list)
    """The same of every linear layer with a bias, (..., C), images first."""

    def total(self) -> Tensor:
        """(B,) sum of all terms; equals the score where the network is piecewise linear (completeness)."""
        images = len(self.input_term)
        terms = [self.input_term, *self.bias_terms, *self.linear_terms]
        return torch.stack([term.double().reshape(images, -1).sum(1) for term in terms]).sum(0)


class _Biases(TorchFunctionMode):
    """Records the output and the bias of every convolution, linear layer and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []
        self.biases: list[Tensor] = []
        self.linear: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call, record, and pass on a copy, since the next layer may work in place."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        bias = None
        if func is F.batch_norm:
            bias = _batch_norm_bias(*args, **kwargs)
        elif func in (F.conv2d, F.linear):
            bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
        if bias is None or not out.requires_grad:
            return out
        self.outputs.append(out)
        self.biases.append(bias.detach() if func is F.linear else bias.detach().view(-1, 1, 1))
        self.linear.append(func is F.linear)
        return out.clone()


def _batch_norm_bias(*args: Any, **kwargs: Any) -> Tensor | None:
    """What a batch norm in evaluation mode adds: bias - mean * weight / sqrt(var + eps), (C,)."""
    given = _BATCH_NORM.bind(*args, **kwargs)
    given.apply_defaults()
    call = given.arguments
    if call["training"] or call["running_mean"] is None:
        return None
    shift = call["running_mean"] / torch.sqrt(call["running_var"] + call["eps"])
    shift = shift if call["weight"] is None else shift * call["weight"]
    return -shift if call["bias"] is None else call["bias"] - shift


def decompose(query: Query, part: slice = slice(None)) -> Decomposition:
    """Input and bias terms of each image's target score; `part` selects some of the images."""
    targets, index = query.targets, torch.arange(len(query.images), device=query.images.device)[part]
    with torch.enable_grad():
        leaf = query.images[part].detach().clone().requires_grad_()
        with _Biases() as record:
            logits = query.forward_eager(leaf)
        gradients = torch.autograd.grad(targets.scores(logits, index).sum(), [leaf, *record.outputs], allow_unused=True)
    found = Decomposition(full((leaf * gradients[0]).detach()))
    for bias, gradient, linear in zip(record.biases, gradients[1:], record.linear):
        if gradient is not None:
            (found.linear_terms if linear else found.bias_terms).append(full(bias * gradient))
    return found


def _psi(term: Tensor, eps: float = 1e-6) -> Tensor:
    """Absolute value, min-max over all channels and positions of an image."""
    term = term.abs()
    term = term - term.amin((1, 2, 3), keepdim=True)
    return term / (term.amax((1, 2, 3), keepdim=True) + eps)


def full_grad(query: Query, align_corners: bool = True) -> Tensor:
    """sum_colours psi(x g_x) + sum over convolutions and batch norms, channels, of up(psi(b g)).

    psi: absolute value, then min-max per image; bilinear upsampling with aligned corners, as in the authors' code
    (idiap/fullgrad-saliency), which also leaves linear layers out of the map. (pytorch-grad-cam scales each channel
    separately: up to 0.14 away on maps of 0..1, correlation 0.986.) In networks with nonlinearities other than ReLU
    (GELU, LayerNorm, attention) the terms do not add up to the score.

    Args:
        query: what is explained, in slices that fit the memory, as every layer's output is kept.
        align_corners: of the upsampling.

    Returns:
        (B, H, W) at the image's resolution, at least 0.
    """
    _ = query.targets  # predicted for all images at once

    def work(part: slice) -> Tensor:
        parts = decompose(query, part)
        size = query.images.shape[2:]
        total = _psi(parts.input_term).sum(1)
        for term in parts.bias_terms:
            # Upsampling is linear: one resize of the channels' sum instead of one per channel.
            summed = _psi(term).sum(1, keepdim=True)
            total = total + F.interpolate(summed, size, mode="bilinear", align_corners=align_corners)[:, 0]
        return total

    return query.micro_batch.run(len(query.images), work, cost=4)


ENTRIES = (Explainer("full_grad", full_grad, "image gradient", at_layer=False),)
