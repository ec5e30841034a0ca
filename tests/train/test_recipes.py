"""The recipes against the hyperparameters of the codes they follow. What differs is listed here and said in the recipe.

Read from: `main.py` and TRAINING.md of facebookresearch/ConvNeXt; `engine.py` of K-H-Ismail/ConvNeXt-dcls;
`train.py`, `metaformer_baselines.py` and `scripts/*/train_*_s18.sh` of sail-sg/metaformer; README, `train.py` and
`models/fastvit.py` of apple/ml-fastvit; `resnet50_8xb256-rsb-a3-100e_in1k.py` of open-mmlab/mmpretrain with its bases.
"""

from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from common.models.zoo import create_model
from train.configure import RECIPES, as_dict, load_settings, recipe_names
from train.data.augment import model_transform
from train.optimizers import Schedule, create_optimizer
from train.settings import Settings

_TIMM = {  # what these trainers share, by timm or by its defaults
    "epochs": 300,
    "precision": "fp32",
    "betas": (0.9, 0.999),
    "optim.weight_decay": 0.05,
    "optim.decay_norm_bias": False,
    "optim.layer_decay": 1.0,
    "optim.clip_grad": None,
    "augment.scale": [0.08, 1.0],
    "augment.hflip": 0.5,
    "augment.auto": "rand-m9-mstd0.5-inc1",
    "augment.interpolation": "bicubic",
    "augment.erase_prob": 0.25,
    "augment.erase_mode": "pixel",
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
    "augment.mix_prob": 1.0,
    "augment.switch_prob": 0.5,
    "augment.repeats": 1,
    "loss.kind": "cross_entropy",
    "loss.smoothing": 0.1,
    "loss.bce_threshold": None,
    "data.image_size": 224,
    "validation size": 224,
}
_CONVNEXT = {
    **_TIMM,
    "optim.name": "adamw",
    "optim.lr": 4e-3,
    "eps": 1e-8,
    "global_batch": 4096,
    "schedule.warmup_epochs": 20,
    "schedule.warmup_lr": 0.0,
    "schedule.min_lr": 1e-6,
    "schedule.cooldown_epochs": 0,
    "layer scale": 1e-6,
    "ema.decay": 0.9999,
    "ema.warmup": False,
    "publish_weights": "ema",
    "crop": 0.875,
}
_METAFORMER = {
    **_TIMM,
    "global_batch": 4096,
    "augment.interpolation": "random",
    "schedule.warmup_epochs": 20,
    "schedule.warmup_lr": 1e-6,
    "schedule.min_lr": 1e-5,
    "schedule.cooldown_epochs": 10,
    "layer scale": None,
    "ema.decay": None,
    "publish_weights": "raw",
    "crop": 1.0,
}
_FASTVIT = {
    **_TIMM,
    "precision": "fp16",
    "optim.name": "adamw",
    "optim.lr": 1e-3,
    "eps": 1e-8,
    "global_batch": 1024,
    "augment.mixup": 0.2,
    "schedule.warmup_epochs": 5,
    "schedule.warmup_lr": 1e-6,
    "schedule.min_lr": 1e-5,
    "schedule.cooldown_epochs": 10,
    "ema.decay": 0.9995,
    "ema.warmup": False,
    "publish_weights": "ema",
    "data.image_size": 256,
    "validation size": 256,
}
ORIGINALS: dict[str, dict[str, Any]] = {
    "convnext_t": {**_CONVNEXT, "drop path": 0.1},
    "convnext_s": {**_CONVNEXT, "drop path": 0.4},
    "convnext_b": {**_CONVNEXT, "drop path": 0.5},
    "caformer_s18": {**_METAFORMER, "optim.name": "lamb", "optim.lr": 8e-3, "eps": 1e-6, "drop path": 0.15},
    "convformer_s18": {**_METAFORMER, "optim.name": "adamw", "optim.lr": 4e-3, "eps": 1e-8, "drop path": 0.2},
    "fastvit_sa24": {**_FASTVIT, "drop path": 0.1, "layer scale": 1e-5, "crop": 0.9},
    "fastvit_sa36": {**_FASTVIT, "drop path": 0.2, "layer scale": 1e-6, "crop": 0.95},
    "resnet50": {
        **_TIMM,
        "epochs": 100,
        "optim.name": "lamb",
        "optim.lr": 8e-3,
        "optim.weight_decay": 0.02,
        "eps": 1e-6,
        "global_batch": 2048,
        "augment.auto": "rand-m6-mstd0.5-inc1",
        "augment.erase_prob": 0.0,
        "augment.mixup": 0.1,
        "schedule.warmup_epochs": 5,
        "schedule.warmup_lr": 8e-7,  # a factor of 1e-4
        "schedule.min_lr": 1e-6,
        "schedule.cooldown_epochs": 0,
        "loss.kind": "bce",
        "loss.smoothing": 0.0,
        "data.image_size": 224,
        "drop path": 0.0,
        "layer scale": None,
        "ema.decay": None,
        "publish_weights": "raw",
        "crop": 224 / 236,
    },
}
_POSITIONS = {"positions.lr_scale": 5.0, "positions.repulsion": True, "positions.repulsion_from_epoch": 21}
"""Of the DCLS ConvNeXt. Of the other DCLS models only some are known, and no others are held against anything."""
for _name, _row in list(ORIGINALS.items()):
    ORIGINALS[f"{_name}_dcls"] = {**_row, **(_POSITIONS if _name.startswith("convnext") else {})}
ORIGINALS["convnext_t_dcls_gauss"] = ORIGINALS["convnext_t_dcls"]
ORIGINALS["convnext_t_dcls_from_plain"] = {  # fine-tuning of ConvNeXt-B at 384 px
    **_CONVNEXT,
    "epochs": 30,
    "optim.lr": 5e-5,
    "optim.weight_decay": 1e-8,
    "optim.layer_decay": 0.7,
    "global_batch": 512,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "schedule.warmup_epochs": 0,
    "drop path": 0.8,
    "ema.decay": None,
    "publish_weights": "raw",
    "data.image_size": 384,
    "validation size": 384,
    "crop": 1.0,
    **_POSITIONS,
}

Differences = dict[str, tuple[Any, str]]
"""By hyperparameter: our value, and the words of the recipe's head that say so."""
_FP32: Differences = {"precision": ("bf16", "bf16 (theirs fp32)")}  # no recipe was trained in bf16; half the memory
_EMA: Differences = {"ema.warmup": (True, "average starts with smaller decays")}  # no effect at the end
_AVERAGED: Differences = {"ema.decay": (0.9999, "of unknown decay")}  # the authors' files hold averaged weights
_WHOLE: Differences = {  # the study evaluates FastViT so, and a checkpoint has one transform
    "precision": ("bf16", "bf16 (theirs fp16)"),
    "crop": (1.0, "validation at crop 1.0"),
}
_A3: Differences = {
    **_FP32,
    "data.image_size": (160, "160 px as in the paper's A3 and for timm's weights (mmpretrain: 224)"),
    "crop": (224 / 235, "brought to 235 px (theirs 236)"),
}
DIFFERENCES: dict[str, Differences] = {
    "convnext_t_dcls_from_plain": {
        "precision": ("bf16", "of the early stages; bf16"),
        "drop path": (0.1, "Our choice: drop path and size of the first training"),
        "data.image_size": (224, "Our choice: drop path and size of the first training"),
        "validation size": (224, "Our choice: drop path and size of the first training"),
        "crop": (0.875, "Our choice: drop path and size of the first training"),
        "optim.layer_decay": (1.0, "no layer decay"),
        "positions.repulsion_from_epoch": (0, "Our choice: the square of the repulsive loss from the start"),
    },
    **{name: {**_FP32, **_EMA} for name in ORIGINALS if name.startswith("convnext") and "plain" not in name},
    **{name: {**_WHOLE, **_EMA} for name in ORIGINALS if name.startswith("fastvit")},
    **{name: _FP32 | (_AVERAGED if "dcls" in name else {}) for name in ORIGINALS if "former" in name},
    "resnet50": _A3,
    "resnet50_dcls": {**_A3, **_AVERAGED},
}
# What is no setting of a recipe, by the recipes' common start.
_COSINE = (
    "cosine begins after the warm-up and moves with every update "
    "(theirs begins with the warm-up and moves once per epoch"
)
OTHER_DIFFERENCES = {
    "convnext": ["an epoch's last, partial batch is trained on"],
    "caformer": [f"{_COSINE}: up to 7 % of the peak lower)", "an epoch's last, partial batch is trained on"],
    "convformer": [f"{_COSINE}: up to 7 % of the peak lower)", "an epoch's last, partial batch is trained on"],
    "fastvit": [f"{_COSINE}: up to 2 % of the peak lower)", "an epoch's last, partial batch is trained on"],
    "resnet50": [
        "BatchNorm on each device (theirs synchronised)",
        "cosine moves with every update (theirs once per epoch)",
    ],
}
NAMES = [name for name in recipe_names() if not name.startswith("demo")]


def head(name: str) -> str:
    """The comment at a recipe's head as one line."""
    text = (RECIPES / f"{name}.yaml").read_text()
    return " ".join(line.lstrip("# ").strip() for line in text[: text.index("\n\n")].splitlines())


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def hyperparameters(settings: Settings) -> dict[str, Any]:
    """Those of a recipe, with what optimiser, model and transform make of it."""
    group = create_optimizer(nn.Linear(1, 1), settings.optim, settings.positions, torch.device("cpu")).param_groups[0]
    few = {"convnext": {"depths": [1, 1, 1, 1]}, "fastvit": {"layers": [1, 1, 1, 1]}}
    shallow = next((layers for start, layers in few.items() if settings.model.startswith(start)), {})
    model = create_model(settings.model, **settings.model_args, **shallow)
    scales = {round(float(p.detach().max()), 9) for name, p in model.named_parameters() if name.endswith("gamma")}
    assert len(scales) <= 1
    transform = model_transform(settings)
    return {
        **flat(as_dict(settings)),
        "betas": tuple(group["betas"]),
        "eps": group["eps"],
        "drop path": settings.model_args.get("drop_path_rate", 0.0),
        "layer scale": scales.pop() if scales else None,
        "validation size": transform.crop,
        "crop": transform.crop / transform.resize,
    }


def test_every_recipe_of_a_network_is_in_the_table() -> None:
    assert set(NAMES) == set(ORIGINALS) == set(DIFFERENCES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_the_hyperparameters_of_its_original_or_says_what_differs(name: str) -> None:
    ours, theirs, differences = hyperparameters(load_settings([f"recipe={name}"])), ORIGINALS[name], DIFFERENCES[name]
    assert not differences.keys() - theirs.keys()
    for key, value in theirs.items():
        if key == "ema.warmup" and ours["ema.decay"] is None:
            continue
        expected, words = differences.get(key, (value, ""))
        assert ours[key] == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected), key
        assert key not in differences or expected != value, f"{key} does not differ any more"
        assert words in head(name), key


@pytest.mark.parametrize("name", [name for name in NAMES if "plain" not in name])
def test_a_recipe_says_what_differs_beside_its_settings(name: str) -> None:
    text = head(name)
    for words in OTHER_DIFFERENCES[name.split("_")[0]]:
        assert words in text
    if "dcls" in name and not name.startswith("convnext"):
        assert "unknown" in text.partition("DCLS: ")[2]
    if name.startswith("convnext") and "dcls" in name:
        assert "averaged once per update (theirs once for each layer)" in text  # timm's average walks the state dict
    if "dcls" in name and load_settings([f"recipe={name}"]).optim.name == "lamb":
        assert "no trust ratio" in text and "0.04 px" in text  # 5 x 8e-3, as positions do not decay


@pytest.mark.parametrize(
    ("name", "share"),
    [("caformer_s18", 0.07), ("convformer_s18", 0.07), ("fastvit_sa24", 0.02), ("fastvit_sa36", 0.02)],
)
def test_learning_rates_are_as_far_from_timms_as_the_recipe_says(name: str, share: float) -> None:
    settings = load_settings([f"recipe={name}"])
    shape, peak, updates = settings.schedule, settings.optim.lr, 50
    ours = Schedule(shape, peak, settings.epochs, updates)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=peak)
    warmup = int(shape.warmup_epochs)
    timm = CosineLRScheduler(optimizer, 300, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6)
    apart = []
    for epoch in range(310):
        timm.step(epoch)
        theirs = optimizer.param_groups[0]["lr"]
        if epoch < warmup:
            assert ours(epoch * updates) == pytest.approx(theirs)
        else:
            apart += [(ours(epoch * updates + update) - theirs) / peak for update in range(updates)]
    assert share - 0.01 < max(apart) < share and min(apart) > -0.01


@pytest.mark.parametrize("name", [name for name in NAMES if "dcls" in name and "resnet" not in name])
def test_the_cost_of_a_dcls_recipe_says_which_kernel_it_holds_for(name: str) -> None:
    cost = head(name).partition("Cost: ")[2].partition("Hyperparameters: ")[0]
    assert "F.conv2d" in cost and "several times" in cost and "not measured" in cost
