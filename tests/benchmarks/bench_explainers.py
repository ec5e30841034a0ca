"""Seconds per image of each explainer next to pytorch-grad-cam, side by side in one run, results compared first.

    python tests/benchmarks/bench_explainers.py --weights mobilenetv2_100_same.pth --images FOLDER

Both get the same normalised batch of a MobileNetV2 at 224 px and give maps of 224 px at its last feature map.
Runs alternate, and the shortest of each is taken, so that a busy machine disturbs both alike. Score-CAM and
Ablation-CAM of the package take minutes an image on a CPU: they run on `--slow-images` images, once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytorch_grad_cam as package
import timm
import torch
import torch.nn.functional as F
import tqdm
from PIL import Image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from common.zoo import lookup
from evaluate.explanation import explain

GRADIENT = {
    "grad_cam": package.GradCAM,
    "grad_cam_pp": package.GradCAMPlusPlus,
    "xgrad_cam": package.XGradCAM,
    "layer_cam": package.LayerCAM,
    "hires_cam": package.HiResCAM,
    "eigen_cam": package.EigenCAM,
}
SLOW = {"score_cam:align_corners=True": package.ScoreCAM, "ablation_cam": package.AblationCAM}


def options() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--weights", type=Path, help="state dict of mobilenetv2_100 with pad_type=same; random without")
    p.add_argument("--images", type=Path, help="folder of photographs; noise without")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--slow-images", type=int, default=1, help="images of Score-CAM and Ablation-CAM; 0: leave them out")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p.parse_args()


def prepare(args: argparse.Namespace) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_100", pad_type="same")
    if args.weights:
        model.load_state_dict(torch.load(args.weights, map_location="cpu", weights_only=True))
    transform = lookup("timm:mobilenetv2_100").transform
    if args.images:
        names = sorted(args.images.rglob("*.jpg"))[: args.batch]
        pixels = torch.stack([transform.geometry()(Image.open(name).convert("RGB")) for name in names])
    else:
        pixels = torch.randint(0, 256, (args.batch, 3, 224, 224), dtype=torch.uint8)
    return model.eval().to(args.device), transform.normalise(pixels).to(args.device)


def theirs(method: type, model: torch.nn.Module, images: torch.Tensor, classes: list[int]) -> np.ndarray:
    """One call as its users write it."""
    layer = model.bn2  # the last feature map, behind its activation
    with method(model, [layer]) as cam:
        return cam(images, [ClassifierOutputTarget(c) for c in classes])


def shortest(runs: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Shortest seconds of each, in alternating rounds after one to warm up."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if number or rounds == 1:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


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


def show(name: str, ours: float, other: float, count: int, alike: float | None) -> None:
    told = "" if alike is None else f"   correlation of maps >= {alike:.5f}"
    print(f"{name:<34}{ours / count * 1e3:>10.1f} ms{other / count * 1e3:>12.1f} ms{other / ours:>8.1f} x{told}")


def main() -> None:
    args = options()
    tqdm.tqdm = lambda iterable, **_: iterable  # the package's own progress bars
    model, images = prepare(args)
    with torch.no_grad():
        classes = model(images).argmax(1).tolist()
    print(f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, batch {len(images)}")
    print(f"{'per image':<34}{'ours':>13}{'grad-cam':>15}{'ratio':>10}")

    for name, method in GRADIENT.items():
        runs = {
            "ours": lambda name=name: explain(model, images, classes, name),
            "theirs": lambda method=method: theirs(method, model, images, classes),
        }
        alike = agreement(name, model, images, classes, runs["theirs"]())
        best = shortest(runs, args.rounds, args.device)
        show(name, best["ours"], best["theirs"], len(images), alike)

    together = shortest(
        {
            "ours": lambda: explain(model, images, classes, list(GRADIENT)),
            "theirs": lambda: [theirs(method, model, images, classes) for method in GRADIENT.values()],
        },
        args.rounds,
        args.device,
    )
    show(f"all {len(GRADIENT)} gradient methods together", together["ours"], together["theirs"], len(images), None)

    few = images[: args.slow_images]
    for name, method in SLOW.items() if args.slow_images else ():
        start = time.perf_counter()
        explain(model, few, classes[: len(few)], name)
        middle = time.perf_counter()
        other = theirs(method, model, few, classes[: len(few)])
        end = time.perf_counter()
        alike = agreement(name, model, few, classes[: len(few)], other)
        show(name, middle - start, end - middle, len(few), alike)


if __name__ == "__main__":
    main()
