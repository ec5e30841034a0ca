"""Cascading randomisation of parameters (Adebayo et al., NeurIPS 2018): a map that stays does not depend on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from evaluate.maps.arithmetic import is_constant, min_max
from evaluate.maps.ranks import spearman
from evaluate.metrics.case import Case
from evaluate.metrics.measure import Measure
from evaluate.network.passes import find_layer, uncompiled

OWN = "own"
"""The stage of the parameters that belong to no part of the network: class token, position embedding."""


def default_stages(model: nn.Module) -> list[str]:
    """Parts of a network with parameters, from the logits down: its children, sequences opened once.

    Children are taken in the reverse of the order in which they were registered, which in timm's models is that of the
    computation. `OWN` comes last: class token and position embedding join the patches before the first block.
    """
    root, names = uncompiled(model), []
    for name, child in root.named_children():
        opened = isinstance(child, nn.Sequential | nn.ModuleList) and len(child) > 1
        parts = [(f"{name}.{part}", m) for part, m in child.named_children()] if opened else [(name, child)]
        names += [part for part, module in parts if any(True for _ in module.parameters())]
    return names[::-1] + [OWN] * any(True for _ in root.parameters(recurse=False))


@torch.no_grad()
def randomise(module: nn.Module, generator: torch.Generator, recurse: bool = True) -> None:
    """Draw every parameter of a module anew, in place: normal with the mean and spread of the values it had.

    Batch norm statistics go back to those of an untrained layer. Drawing from the values' own distribution keeps the
    scale of the activations, for any kind of layer. Without `recurse` the module's parts stay as they are.
    """
    for parameter in module.parameters(recurse):
        values = parameter.float()
        spread = values.std(correction=0)
        drawn = torch.randn(parameter.shape, generator=generator).to(parameter.device) * spread + values.mean()
        parameter.copy_(drawn)
    for part in module.modules() if recurse else ():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.reset_running_stats()


@torch.no_grad()
def reinitialise(module: nn.Module, generator: torch.Generator, recurse: bool = True) -> None:
    """Run the initialiser of every part of a module again, in place, as Adebayo et al. and Quantus do.

    It is PyTorch's (`reset_parameters`), which need not be the one the network began its training with. Parts without
    an initialiser (class token, position embedding) are drawn as in `randomise`. Without `recurse` the module's parts
    stay as they are.
    """
    on_gpu = {parameter.device for parameter in module.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(list(on_gpu)):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        for part in list(module.modules()) if recurse else [module]:
            if hasattr(part, "reset_parameters"):
                cast(Any, part).reset_parameters()
            else:
                randomise(part, generator, recurse=False)


RESETS: dict[str, Callable[[nn.Module, torch.Generator, bool], None]] = {
    "values": randomise,
    "initialiser": reinitialise,
}
"""Ways to randomise a module, or only its own parameters, in place."""


def ssim(a: Tensor, b: Tensor, sigma: float = 1.5) -> Tensor:
    """Mean structural similarity of maps (B, H, W) in 0..1 (Wang et al., 2004): Gaussian window, K = 0.01, 0.03.

    Equal to scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1)`: an 11 pixel window, borders of 5 pixels left out of the mean. Adebayo et al. call it with the sample
    covariance and, as floats are assumed to lie in -1..1, a range of 2. That gives higher values (for 12 of 12 pairs of
    maps; means of 0.36 and 0.52 where these are 0.23 and 0.31): never compare these with their curves.
    """
    radius = int(3.5 * sigma + 0.5)
    line = torch.arange(-radius, radius + 1, dtype=torch.float64, device=a.device)
    window = torch.exp(-(line**2) / (2 * sigma**2))
    window = window / window.sum()

    def local(values: Tensor) -> Tensor:
        values = F.conv2d(values[:, None], window.view(1, 1, -1, 1))
        return F.conv2d(values, window.view(1, 1, 1, -1))[:, 0]

    a, b = a.double(), b.double()
    mean_a, mean_b = local(a), local(b)
    var_a, var_b, cov = local(a * a) - mean_a**2, local(b * b) - mean_b**2, local(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return similarity.mean((1, 2))


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "spearman": lambda before, after: spearman(before.flatten(1), after.flatten(1)),
    "spearman_abs": lambda before, after: spearman(before.abs().flatten(1), after.abs().flatten(1)),
    "ssim": lambda before, after: ssim(min_max(before), min_max(after)),
}
"""Two maps (B, H, W) each -> (B,)."""


def cascading_randomisation(
    case: Case,
    similarity: str = "spearman",
    stages: Sequence[str] | None = None,
    seed: int = 0,
    reset: str = "values",
) -> Tensor:
    """Similarity of the maps to those of the network randomised from the logits down; its mean is the score.

    Adebayo et al., NeurIPS 2018. Maps as the explainer gives them (`grad_cam:relu=False` for the signed one), at
    the images' resolution. The lower, the more the explainer depends on what was learnt; 1 for a map that ignores
    the network. The new parameters depend on the seed only; a copy of the network is randomised in
    each batch. The paper's similarity of HOG features is not offered.

    Args:
        case: model, images, maps and the explainer.
        similarity: a name of `SIMILARITIES`: rank correlation of the maps, or of their magnitudes, or SSIM of the
            maps scaled to 0..1.
        stages: names of modules, or `OWN`, in the order in which they are randomised, each on top of those before;
            None: `default_stages`.
        seed: of the new parameters.
        reset: `values` draws parameters from the distribution of the old ones, see `randomise`; `initialiser` runs
            PyTorch's initialisers, as Quantus does, see `reinitialise`. Adebayo et al. ran their network's own, which a
            network does not carry. Signed Grad-CAM of MobileNetV2 on 4 photographs: means of -0.02 and 0.03, and
            -0.43 and 0.03 where the classifier alone is random.

    Returns:
        (B, stages) in -1..1, NaN where either map is constant; an image's value is the mean of the others.

    Raises:
        UserError: unknown similarity or reset, a stage that the model does not have, or no explainer.
    """
    if reset not in RESETS:
        raise UserError(f"reset {reset!r}; take {' or '.join(RESETS)}")
    if similarity not in SIMILARITIES:
        raise UserError(f"similarity {similarity!r}; take one of {', '.join(SIMILARITIES)}")
    twin = copy.deepcopy(case.query.bare)
    generator = torch.Generator().manual_seed(seed)
    before, curve = case.resized, []
    for stage in default_stages(twin) if stages is None else stages:
        RESETS[reset](twin if stage == OWN else find_layer(twin, stage), generator, stage != OWN)
        after = Case(twin, case.images, case.explain(twin, case.images)).resized
        alike = SIMILARITIES[similarity](before, after)
        curve.append(alike.where(~is_constant(before) & ~is_constant(after), torch.nan))
    return torch.stack(curve, 1)


ENTRIES = (
    Measure(
        "cascading_randomisation",
        cascading_randomisation,
        "lower",
        ("explain",),
        lambda curve: curve.nanmean(1),
        has_curve=True,
    ),
)
