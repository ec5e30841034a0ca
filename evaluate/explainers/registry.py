"""Every explainer by the name people type, with what help and result files say of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from common.errors import UserError, did_you_mean
from evaluate.explainers.ablation_cam import ablation_cam
from evaluate.explainers.conceptor_cam import conceptor_cam
from evaluate.explainers.controls import centre, fake_cam, random_map
from evaluate.explainers.eigen_cam import eigen_cam
from evaluate.explainers.full_grad import full_grad
from evaluate.explainers.grad_cam import grad_cam
from evaluate.explainers.grad_cam_pp import grad_cam_pp
from evaluate.explainers.guided import guided_backprop, guided_grad_cam
from evaluate.explainers.hires_cam import hires_cam
from evaluate.explainers.input_gradient import input_gradient
from evaluate.explainers.layer_cam import layer_cam
from evaluate.explainers.occlusion import occlusion
from evaluate.explainers.opti_cam import opti_cam
from evaluate.explainers.rise import rise
from evaluate.explainers.score_cam import score_cam
from evaluate.explainers.smooth_grad import smooth_grad
from evaluate.explainers.threshold_grad_cam import threshold_grad_cam
from evaluate.explainers.xgrad_cam import xgrad_cam
from evaluate.named import check_parameters, parse_parameters
from evaluate.network.query import Query

Family = Literal["gradient", "image gradient", "perturbation", "optimisation", "control"]
"""gradient: from the shared pass at the layer; image gradient: a pass of its own through the whole network."""

_SIGNED = {"relu": False}
_SUM = {"reduce": "sum"}
_SUM_OF_GRADIENTS = {"reduce": "sum", "magnitude": False}


@dataclass(frozen=True)
class Explainer:
    """One method."""

    name: str
    family: Family
    function: Callable[..., Tensor]
    """Of features and gradients (family `gradient`) or of a `Query`, with parameters by keyword."""
    raw: dict[str, Any] = field(default_factory=dict)
    """Parameters that give the signed, unscaled map."""
    at_layer: bool = True
    """Whether it looks at the explained layer."""
    verified: bool = True
    note: str = ""
    """What anyone who reads its results must know; shown in the help and in result files."""

    @property
    def summary(self) -> str:
        """First line of its documentation."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """Its parameters and their defaults."""
        signature = inspect.signature(self.function).parameters
        skipped = ("features", "gradients", "query")
        return {name: p.default for name, p in signature.items() if name not in skipped}

    def __call__(self, query: Query, **parameters: Any) -> Tensor:
        """Saliency (B, h, w) at the layer's or the image's resolution."""
        if self.family == "gradient":
            return self.function(query.features, query.gradients, **parameters)
        return self.function(query, **parameters)


_ALL = (
    Explainer("grad_cam", "gradient", grad_cam, _SIGNED),
    Explainer(
        "threshold_grad_cam", "gradient", threshold_grad_cam, {"normalisation": "none", "threshold": float("-inf")}
    ),
    Explainer("grad_cam_pp", "gradient", grad_cam_pp, _SIGNED),
    Explainer("xgrad_cam", "gradient", xgrad_cam, _SIGNED),
    Explainer("layer_cam", "gradient", layer_cam, _SIGNED),
    Explainer("hires_cam", "gradient", hires_cam, _SIGNED),
    Explainer("eigen_cam", "gradient", eigen_cam, _SIGNED, note="knows no class"),
    Explainer(
        "conceptor_cam",
        "gradient",
        conceptor_cam,
        _SIGNED,
        verified=False,
        note="reconstruction: not verified against the paper",
    ),
    Explainer("score_cam", "perturbation", score_cam, _SIGNED),
    Explainer("ablation_cam", "perturbation", ablation_cam, _SIGNED),
    Explainer("opti_cam", "optimisation", opti_cam),
    Explainer("full_grad", "image gradient", full_grad, at_layer=False),
    Explainer("input_gradient", "image gradient", input_gradient, _SUM, at_layer=False),
    Explainer(
        "guided_backprop", "image gradient", guided_backprop, _SUM, at_layer=False, note="needs a network of ReLUs"
    ),
    Explainer("guided_grad_cam", "image gradient", guided_grad_cam, _SUM, note="needs a network of ReLUs"),
    Explainer("smooth_grad", "image gradient", smooth_grad, _SUM_OF_GRADIENTS, at_layer=False),
    Explainer("rise", "perturbation", rise, at_layer=False),
    Explainer("occlusion", "perturbation", occlusion, at_layer=False),
    Explainer("random", "control", random_map, at_layer=False, note="control: explains nothing"),
    Explainer("centre", "control", centre, at_layer=False, note="control: explains nothing"),
    Explainer("fake_cam", "control", fake_cam, at_layer=False, note="control: hides nothing"),
)

EXPLAINERS: dict[str, Explainer] = {explainer.name: explainer for explainer in _ALL}
"""Every explainer by the name people type."""


def with_warning(text: str) -> str:
    """`NAME[:KEY=VALUE,...]`, followed by the note of an explainer that is not verified."""
    explainer = EXPLAINERS.get(text.partition(":")[0])
    return text if explainer is None or explainer.verified else f"{text} ({explainer.note})"


def parse_method(text: str) -> tuple[Explainer, dict[str, Any]]:
    """`NAME` or `NAME:KEY=VALUE,KEY=VALUE`, such as `threshold_grad_cam:threshold=0.5` -> explainer, parameters.

    Raises:
        UserError: no such explainer, or it has no such parameter.
    """
    name, _, rest = text.partition(":")
    return checked_method(name, parse_parameters(text, rest))


def checked_method(name: str, parameters: dict[str, Any]) -> tuple[Explainer, dict[str, Any]]:
    """The explainer of a name, with parameters that it knows.

    Raises:
        UserError: no such explainer, it has no such parameter, or the parameter is of another type.
    """
    if name not in EXPLAINERS:
        raise UserError(f"unknown explainer {name!r}; {did_you_mean(name, EXPLAINERS)}")
    explainer = EXPLAINERS[name]
    check_parameters(name, parameters, explainer.parameters)
    return explainer, parameters
