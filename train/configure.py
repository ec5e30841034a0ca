"""From the command line to checked settings: defaults < recipe < smoke < `key=value`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from common.errors import UserError, did_you_mean, first_line
from common.surgery import DEPTHWISE_WAYS, DclsSpec
from common.zoo import lookup
from train.settings import Settings
from train.usage import documented, nearest_key

RECIPES = Path(__file__).resolve().parents[1] / "recipes"

SMOKE: dict[str, Any] = {
    "updates": 2,
    "global_batch": 4,
    "batch_size": 2,
    "precision": "fp32",
    "pretrained": False,
    "compile": False,
    "threads": 1,
    "checkpoints_dir": "runs/smoke_checkpoints",
    "overwrite": True,
    "data": {
        "image_size": 64,
        "eval_size": 64,
        "workers": 0,
        "train_images": 24,
        "val_images": 6,
    },
    "log": {"every": 1},
}
"""What `smoke=true` lays over a recipe, beside data that are made on the fly."""

_CHOICES = {
    "precision": ("fp32", "bf16", "fp16"),
    "depthwise": DEPTHWISE_WAYS,
    "publish_weights": ("raw", "ema"),
    "loss.kind": ("cross_entropy", "bce"),
    "augment.interpolation": ("bicubic", "bilinear", "random"),
    "augment.erase_mode": ("const", "rand", "pixel"),
}
_AT_LEAST = {
    "epochs": 0.0,
    "updates": 1,
    "global_batch": 1,
    "batch_size": 1,
    "eval_batch_size": 1,
    "num_classes": 2,
    "threads": 1,
    "data.image_size": 1,
    "data.eval_size": 1,
    "data.workers": 0,
    "data.prefetch": 1,
    "data.train_images": 1,
    "data.val_images": 1,
    "augment.repeats": 1,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "optim.lr": 0.0,
    "optim.weight_decay": 0.0,
    "schedule.warmup_epochs": 0.0,
    "schedule.warmup_lr": 0.0,
    "schedule.min_lr": 0.0,
    "schedule.cooldown_epochs": 0.0,
    "snapshots.every_updates": 1,
    "snapshots.every_minutes": 0.0,
    "snapshots.keep_last": 1,
    "snapshots.keep_every": 1,
    "log.every": 1,
    "seed": 0,
}


def recipe_names(folder: Path = RECIPES) -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def recipe_list(folder: Path = RECIPES) -> str:
    """One line per recipe: its name and the first line of its head comment."""
    lines = []
    for name in recipe_names(folder):
        first = (folder / f"{name}.yaml").read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        lines.append(f"  {name:24} {first.lstrip('# ')}")
    return "\n".join(lines)


def load_settings(arguments: Sequence[str], recipes: Path = RECIPES) -> Settings:
    """Settings of a run from its `key=value` arguments.

    Raises:
        UserError: no recipe, an unknown one, an unknown key or a value of the wrong kind; the message names the
            nearest right ones.
    """
    typed = _parse_arguments(arguments)
    if not recipe_names(recipes):
        raise UserError(
            f"no recipes in {recipes}: a plain `pip install .` leaves them out. Run from a checkout of the repository, "
            "installed with `pip install -e .`"
        )
    name = typed.get("recipe")
    if not name:
        raise UserError(f"no recipe given: recipe=NAME, with NAME one of\n{recipe_list(recipes)}")
    layers = [(f"recipe {name}", _read_recipe(str(name), recipes)), ("command line", typed)]
    merged = OmegaConf.structured(Settings)
    for where, layer in layers:
        _check_keys(layer, where)
    if any(layer.get("smoke") for _, layer in layers):
        layers.insert(1, ("smoke", _smoke(layers[0][1], f"{typed.get('name') or name}_smoke")))
    for where, layer in layers:
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise UserError(f"{where}: {error.full_key}: {first_line(error.msg)}") from error
    settings = OmegaConf.to_object(merged)
    assert isinstance(settings, Settings)
    settings.name = settings.name or str(name)
    _check_values(settings)
    return settings


def as_dict(settings: Settings) -> dict[str, Any]:
    """Settings as plain nested values."""
    return dataclasses.asdict(settings)


def dcls_spec(settings: Settings) -> DclsSpec | None:
    """The surgery of this run: that of the zoo with the changes of `dcls`, or None.

    Raises:
        UserError: unknown model, changes to a plain model, an unknown field or value.
    """
    spec = lookup(settings.model).dcls
    if not settings.dcls:
        return spec
    known = [f"dcls.{field.name}" for field in dataclasses.fields(DclsSpec)]
    for key in settings.dcls:
        if f"dcls.{key}" not in known:
            raise UserError(f"unknown key dcls.{key}; {did_you_mean(f'dcls.{key}', known)}")
    base = dataclasses.asdict(spec) if spec else {}
    try:
        return DclsSpec(**{**base, **settings.dcls})
    except (TypeError, ValueError) as error:
        raise UserError(f"dcls does not describe a surgery of {settings.model}: {error}") from error


def accumulation(settings: Settings, processes: int) -> int:
    """Batches that each process accumulates in an update.

    Raises:
        UserError: `global_batch` is no multiple of `processes * batch_size`; names the nearest sizes that fit.
    """
    whole, batch = settings.global_batch, settings.batch_size
    if whole % (processes * batch) == 0:
        return whole // (processes * batch)
    advice = []
    if whole % processes == 0:
        share = whole // processes
        fitting = [b for b in range(1, share + 1) if share % b == 0]
        below = max((b for b in fitting if b < batch), default=None)
        above = min((b for b in fitting if b > batch), default=None)
        advice.append(" or ".join(f"batch_size={b}" for b in (below, above) if b))
    step = processes * batch
    multiples = [m for m in (whole // step * step, (whole // step + 1) * step) if m]
    advice.append(" or ".join(f"global_batch={m}" for m in multiples) + " (the learning rate belongs to the old one)")
    raise UserError(
        f"global_batch={whole} does not divide into {processes} process(es) x batch_size={batch}; take "
        + ", or ".join(advice)
    )


# --- steps ----------------------------------------------------------------------------------------------------


def _parse_arguments(arguments: Sequence[str]) -> DictConfig:
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals or not key or key.startswith("-"):
            raise UserError(f"argument {argument!r} is not of the form key=value, such as optim.lr=2e-3")
    try:
        return OmegaConf.from_dotlist(list(arguments))
    except (YAMLError, OmegaConfBaseException) as error:
        hint = "quote a value that YAML reads otherwise, as in \"dcls.rule='*.conv_dw'\""
        raise UserError(f"arguments cannot be read: {first_line(error)}; {hint}") from error


def _read_recipe(name: str, folder: Path) -> DictConfig:
    path = folder / f"{name}.yaml"
    known = recipe_names(folder)
    if name not in known:
        raise UserError(f"no recipe {name!r} in {folder.name}/; {did_you_mean(name, known)}")
    try:
        content = OmegaConf.load(path)
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, DictConfig):
        raise UserError(f"{path} holds no settings (key: value lines)")
    return content


def _smoke(recipe: DictConfig, name: str) -> DictConfig:
    """In the place of photographs, JPEG files of scenes: they pass through the recipe's own augmentation."""
    source = "scenes" if OmegaConf.select(recipe, "data.source") == "scenes" else "scenes:jpeg"
    return OmegaConf.create({**SMOKE, "name": name, "data": {**SMOKE["data"], "source": source}})


def _check_keys(layer: DictConfig, where: str) -> None:
    known = [item.key for item in documented()]

    def visit(node: DictConfig, prefix: str) -> None:
        for key, value in node.items_ex(resolve=False):
            name = f"{prefix}{key!s}"
            inner = any(k.startswith(f"{name}.") for k in known)
            if name in known or (inner and isinstance(value, DictConfig)):
                if inner:
                    visit(value, f"{name}.")
                continue
            if inner:
                raise UserError(f"{where}: {name} holds several settings; give them as {name}.KEY=VALUE")
            while isinstance(value, DictConfig) and len(value):
                inner_key, value = next(iter(value.items_ex(resolve=False)))
                name = f"{name}.{inner_key!s}"
            raise UserError(f"{where}: unknown key {name}; {nearest_key(name, known)}")

    visit(layer, "")


def _check_values(settings: Settings) -> None:
    def value_of(key: str) -> Any:
        value: Any = settings
        for part in key.split("."):
            value = getattr(value, part)
        return value

    for key, choices in _CHOICES.items():
        if value_of(key) not in choices:
            near = difflib.get_close_matches(str(value_of(key)), choices, 1, 0.0)[0]
            raise UserError(f"{key}={value_of(key)}: take one of {', '.join(choices)} (nearest: {near})")
    for key, least in _AT_LEAST.items():
        if value_of(key) is not None and value_of(key) < least:
            raise UserError(f"{key}={value_of(key)}: must be at least {least:g}")
    if not settings.model:
        raise UserError(f"recipe {settings.recipe} names no model; add model=NAME")
    lookup(settings.model)
    dcls_spec(settings)
    if settings.pretrained and settings.init_from:
        raise UserError(f"init_from={settings.init_from} and pretrained=true are two starts; give one of them")
    for key in ("data.val_fraction", "loss.smoothing"):
        if not 0.0 <= value_of(key) < 1.0:
            raise UserError(f"{key}={value_of(key)}: must be at least 0 and below 1")
    if len(settings.augment.scale) != 2:
        raise UserError(f"augment.scale={settings.augment.scale}: give two numbers, such as [0.08,1.0]")
    if settings.ema.decay is not None and not 0.0 <= settings.ema.decay < 1.0:
        raise UserError(f"ema.decay={settings.ema.decay}: must be at least 0 and below 1; null switches it off")
    if settings.publish_weights == "ema" and settings.ema.decay is None:
        raise UserError("publish_weights=ema needs an average of the weights: give ema.decay, or publish_weights=raw")
    mixing = settings.augment.mixup > 0 or settings.augment.cutmix > 0
    if mixing and settings.batch_size % 2:
        raise UserError(f"batch_size={settings.batch_size}: mixup and cutmix pair pictures, so it must be even")
