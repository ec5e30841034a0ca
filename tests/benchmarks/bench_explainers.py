"""Explainers next to the grad-cam package, side by side, results compared first.

Both get one normalised batch of random images and a network of random weights (timing does not see them) and give
maps of the images' size. The package's progress bars are off. Its RandomCAM is left out: it weighs channels at
random, our `random` is a map of noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import pytorch_grad_cam as package
import timm
import torch
import torch.nn.functional as F
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from evaluate.explainers.explain import explain
from tests.benchmarks.harness import Timing, alternate, device, markdown

TITLE = "Explainers against grad-cam"
GOAL = (
    "Goal: never slower; the gradient explainers together at least 5 times faster than one call of grad-cam for each. "
    "First table: MobileNetV2 at 224 px, maps at its last feature map."
)
NOTES = """Explainers of many passes, and gradients of the image. `ablation_cam` at the last map runs the head only, the
package the whole network; at a layer further up both run the network. guided Grad-CAM: the package has no class for
it, its examples multiply the two maps. Guided backpropagation takes one image per call in the package. Correlations
below 1 by definition: for `full_grad` the package scales every channel to 0..1 by itself, ours all channels of an image
together, as the authors' code; in guided Grad-CAM its factor Grad-CAM is scaled to 0..1, ours is not."""
GRADIENT = {
    "grad_cam": package.GradCAM,
    "grad_cam_pp:form=library": package.GradCAMPlusPlus,
    "xgrad_cam": package.XGradCAM,
    "layer_cam": package.LayerCAM,
    "hires_cam": package.HiResCAM,
    "eigen_cam": package.EigenCAM,
}
SCORE_CAM = "score_cam:weighting=softmax,align_corners=True"
"""As the package computes it."""
Row = tuple[str, dict[str, Timing], float | None]


@dataclass(frozen=True)
class Setting:
    """A network, images (B, 3, H, W), their classes and a layer, the same for both sides."""

    model: nn.Module
    images: Tensor
    classes: list[int]
    layer: str
    """By name; at `last` ours explains the last feature map by default."""
    last: bool = True

    def ours(self, method: str, raw: bool = False) -> Tensor:
        """Our maps; raw: signed and at the layer's own size."""
        layer = None if self.last else self.layer
        given = {"form": "raw", "size": "own"} if raw else {}
        return explain(self.model, self.images, self.classes, method, layer=layer, **given)[method]

    def theirs(self, method: type) -> np.ndarray:
        """One call as the package's users write it."""
        layers = [self.model.get_submodule(self.layer)] if method is not package.FullGrad else []
        with method(self.model, layers) as cam:
            return cam(self.images, [ClassifierOutputTarget(c) for c in self.classes])

    def their_guided(self) -> np.ndarray:
        """Guided backpropagation by the package, which takes one image per call; (B, H, W, 3)."""
        guided = package.GuidedBackpropReLUModel(self.model)
        return np.stack([guided(image[None].clone(), c) for image, c in zip(self.images, self.classes)])

    def their_guided_cam(self) -> np.ndarray:
        """(B, H, W, 3)."""
        return self.theirs(package.GradCAM)[..., None] * self.their_guided()


def setting(name: str, layer: str, batch: int, size: int = 224, last: bool = True, **arguments: object) -> Setting:
    """A network of random weights and the classes it predicts for random images."""
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval().to(device())
    images = torch.randn(batch, 3, size, size, device=device())
    with torch.no_grad():
        return Setting(model, images, model(images).argmax(1).tolist(), layer, last)


def correlation(ours: Tensor, theirs: np.ndarray) -> float:
    """Least correlation over images of maps (B, H, W)."""
    pairs = zip(ours.cpu().double().numpy().reshape(len(ours), -1), theirs.reshape(len(ours), -1))
    return min(float(np.corrcoef(a, b)[0, 1]) if a.any() else -1.0 for a, b in pairs)


def agreement(here: Setting, method: str, theirs: np.ndarray) -> float:
    """Least correlation over images of our ReLU'd map with the package's.

    The sign of EigenCAM's map is arbitrary in the package: of both signs the one that agrees better counts.
    """
    signed = here.ours(method, raw=True)
    both = [
        F.interpolate(part[:, None], here.images.shape[2:], mode="bilinear")[:, 0]
        for part in ((signed.relu(), (-signed).relu()) if method == "eigen_cam" else (signed.relu(),))
    ]
    return min(max(correlation(part[n : n + 1], theirs[n : n + 1]) for part in both) for n in range(len(signed)))


def duel(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> dict[str, Timing]:
    """Times of both, alternating."""
    return alternate({"ours": ours, "grad-cam": theirs}, rounds)


def gradient_rows(batch: int, rounds: int) -> list[Row]:
    """The explainers of one shared pass, each alone and all together."""
    here = setting("mobilenetv2_100", "bn2", batch, pad_type="same")  # bn2: with its activation the last feature map
    rows: list[Row] = []
    for name, method in GRADIENT.items():
        alike = agreement(here, name, here.theirs(method))
        assert alike > 0.999, (name, alike)
        rows.append((name, duel(lambda: here.ours(name), lambda: here.theirs(method), rounds), alike))  # noqa: B023
    together = duel(
        lambda: explain(here.model, here.images, here.classes, list(GRADIENT)),
        lambda: [here.theirs(method) for method in GRADIENT.values()],
        rounds,
    )
    return [*rows, (f"all {len(GRADIENT)} together", together, None)]


def other_rows(batch: int, rounds: int, slow_rounds: int) -> list[Row]:
    """Explainers of many passes, in small settings as the package would need minutes, and of the image gradient."""
    narrow = setting("mobilenetv2_100", "blocks.5", batch, last=False, pad_type="same")
    early = setting("mobilenetv2_100", "blocks.0.0.bn1", batch, last=False, pad_type="same")
    small = setting("mobilenetv2_100", "bn2", batch, 96, pad_type="same")
    plain = setting("resnet18", "layer4", batch)  # the package knows plain ReLU and BatchNorm2d only
    rows: list[Row] = []
    for label, here, name, method in (
        ("score_cam:weighting=softmax at blocks.5 (160 channels)", narrow, SCORE_CAM, package.ScoreCAM),
        ("ablation_cam, last map (1280 channels), 96 px", small, "ablation_cam", package.AblationCAM),
        ("ablation_cam at blocks.0.0.bn1 (32 channels)", early, "ablation_cam", package.AblationCAM),
    ):
        alike = agreement(here, name, here.theirs(method))
        assert alike > 0.999, (label, alike)
        times = duel(lambda: here.ours(name), lambda: here.theirs(method), slow_rounds)  # noqa: B023
        rows.append((f"{label}, MobileNetV2", times, alike))
    for name, theirs, least in (
        ("full_grad", lambda: plain.theirs(package.FullGrad)[..., None], 0.5),
        ("guided_backprop", plain.their_guided, 0.999),
        ("guided_grad_cam", plain.their_guided_cam, 0.9),
    ):
        alike = correlation(plain.ours(name, raw=True), theirs().sum(3))
        assert alike > least, (name, alike)
        rows.append((f"{name}, ResNet-18", duel(lambda: plain.ours(name), theirs, rounds), alike))  # noqa: B023
    return rows


def table(rows: Sequence[Row], batch: int) -> str:
    """Both sides' times, their ratio, the agreement."""
    header = ["explainer", f"grad-cam ms, batch {batch}", "ours ms", "times faster", "least correlation of maps"]
    cells = []
    for name, times, alike in rows:
        ratio = times["grad-cam"].median / times["ours"].median
        told = "" if alike is None else f"{alike:.5f}"
        cells.append([name, str(times["grad-cam"]), str(times["ours"]), f"{ratio:.1f}", told])
    return markdown(header, cells)


def run(batch: int | None = None, rounds: int = 5, small_batch: int | None = None, slow_rounds: int = 2) -> str:
    """The two tables of this benchmark; batches of 64 and 16 on a GPU, 8 and 2 on a CPU."""
    gpu = device().type == "cuda"
    batch, small_batch = batch or (64 if gpu else 8), small_batch or (16 if gpu else 2)
    with patch("tqdm.tqdm", lambda iterable, **_: iterable):
        gradient = table(gradient_rows(batch, rounds), batch)
        others = table(other_rows(small_batch, rounds, slow_rounds), small_batch)
    return f"{gradient}\n\n{NOTES}\n\n{others}"
