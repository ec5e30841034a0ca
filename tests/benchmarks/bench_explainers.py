"""Explainers next to the grad-cam package, side by side, results compared first.

Both get one normalised batch of a MobileNetV2 at 224 px (random weights; timing does not see them) and give maps
of 224 px at its last feature map.
"""

from __future__ import annotations

import numpy as np
import pytorch_grad_cam as package
import timm
import torch
import torch.nn.functional as F
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from evaluate.explanation import explain
from tests.benchmarks.harness import alternate, device, markdown

TITLE = "Gradient explainers against grad-cam, MobileNetV2"
GOAL = "Goal: never slower; all together at least 5 times faster than grad-cam once a method."
GRADIENT = {
    "grad_cam": package.GradCAM,
    "grad_cam_pp": package.GradCAMPlusPlus,
    "xgrad_cam": package.XGradCAM,
    "layer_cam": package.LayerCAM,
    "hires_cam": package.HiResCAM,
    "eigen_cam": package.EigenCAM,
}


def theirs(method: type, model: torch.nn.Module, images: torch.Tensor, classes: list[int]) -> np.ndarray:
    """One call as the package's users write it."""
    with method(model, [model.bn2]) as cam:  # the last feature map, behind its activation
        return cam(images, [ClassifierOutputTarget(c) for c in classes])


def agreement(name: str, model: torch.nn.Module, images: torch.Tensor, classes: list[int], other: np.ndarray) -> float:
    """Least correlation over images of our map with the package's.

    The sign of EigenCAM's map is arbitrary in the package: of both signs the one that agrees better counts.
    """
    signed = explain(model, images, classes, name, form="raw", size="own")[name]
    correlations = []
    for part in (signed.relu(), (-signed).relu()):
        resized = F.interpolate(part[:, None], images.shape[2:], mode="bilinear")[:, 0].cpu().double().numpy()
        pairs = zip(resized.reshape(len(other), -1), other.reshape(len(other), -1))
        correlations.append([float(np.corrcoef(a, b)[0, 1]) if a.any() else -1.0 for a, b in pairs])
    same, opposite = correlations
    return min(max(s, o) if name == "eigen_cam" else s for s, o in zip(same, opposite))


def run(batch: int = 8, rounds: int = 5) -> str:
    """The table of this benchmark."""
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_100", pad_type="same").eval().to(device())
    images = torch.randn(batch, 3, 224, 224, device=device())
    with torch.no_grad():
        classes = model(images).argmax(1).tolist()
    rows = []
    for name, method in GRADIENT.items():
        other = theirs(method, model, images, classes)
        alike = agreement(name, model, images, classes, other)
        assert alike > 0.999, (name, alike)
        times = alternate(
            {
                "ours": lambda: explain(model, images, classes, name),  # noqa: B023
                "grad-cam": lambda: theirs(method, model, images, classes),  # noqa: B023
            },
            rounds,
        )
        rows.append([name, times, f"{alike:.5f}"])
    together = alternate(
        {
            "ours": lambda: explain(model, images, classes, list(GRADIENT)),
            "grad-cam": lambda: [theirs(method, model, images, classes) for method in GRADIENT.values()],
        },
        rounds,
    )
    rows.append([f"all {len(GRADIENT)} together", together, ""])
    cells = [
        [name, str(t["grad-cam"]), str(t["ours"]), f"{t['grad-cam'].median / t['ours'].median:.1f}", alike]
        for name, t, alike in rows
    ]
    header = ["method", f"grad-cam ms, batch {batch}", "ours ms", "times faster", "least correlation of maps"]
    return markdown(header, cells)
