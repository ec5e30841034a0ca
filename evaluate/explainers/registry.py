"""Every explainer by the name people type. Another one is a file here with its `ENTRIES`, and a line below."""

from __future__ import annotations

from evaluate.explainers.explainer import Explainer
from evaluate.named import Registry, entries_of

_FILES = (
    "grad_cam",
    "threshold_grad_cam",
    "grad_cam_pp",
    "xgrad_cam",
    "layer_cam",
    "hires_cam",
    "eigen_cam",
    "conceptor_cam",
    "score_cam",
    "ablation_cam",
    "opti_cam",
    "full_grad",
    "input_gradient",
    "guided",
    "smooth_grad",
    "rise",
    "occlusion",
    "controls",
)

EXPLAINERS = Registry("explainer", entries_of("evaluate.explainers", _FILES, Explainer))
"""Every explainer by the name people type."""


def with_warning(text: str) -> str:
    """`NAME[:KEY=VALUE,...]`, followed by the note of an explainer that is not verified."""
    explainer = EXPLAINERS.get(text.partition(":")[0])
    return text if explainer is None or explainer.verified else f"{text} ({explainer.note})"
