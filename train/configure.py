"""From the command line to checked settings: defaults < recipe < smoke < `key=value`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.dcls_spec import DclsSpec
from common.errors import UserError, did_you_mean, first_line
from common.models.zoo import lookup
from common.surgery import DEPTHWISE_WAYS
from common.text import one_line
from train.bounds import check_augmentation, check_numbers
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
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where}: a value is of another kind than its setting: {first_line(error)}") from error
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


def refuse_odd_text(layer: Any, where: str) -> None:
    """Raise where a value would be replaced by what stands in the environment, such as a token, or acts on a terminal.

    Raises:
        UserError: `${` or a control character is in a key or a value.
    """

    def visit(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                visit(name, key)
                visit(inner, f"{key}.{name!s}" if key else str(name))
        elif isinstance(value, list):
            for inner in value:
                visit(inner, key)
        elif isinstance(value, str) and ("${" in value or one_line(value) != value):
            what = "${...} is not replaced here" if "${" in value else "it holds line breaks or control characters"
            raise UserError(f"{where}: {key}={one_line(value[:80])}: {what}; give the value itself")

    visit(OmegaConf.to_container(layer, resolve=False), "")


def accumulation(settings: Settings, processes: int) -> int:
    """Batches per update that each process accumulates.

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
        found = OmegaConf.from_dotlist(list(arguments))
    except Exception as error:  # PyYAML raises all kinds for values that are none of their type
        hint = "quote a value that YAML reads otherwise, as in \"dcls.rule='*.conv_dw'\""
        raise UserError(f"arguments cannot be read: {first_line(error)}; {hint}") from error
    refuse_odd_text(found, "command line")
    return found


def _read_recipe(name: str, folder: Path) -> DictConfig:
    path = folder / f"{name}.yaml"
    known = recipe_names(folder)
    if name not in known:
        raise UserError(f"no recipe {name!r} in {folder.name}/; {did_you_mean(name, known)}")
    try:
        content = OmegaConf.load(path)
    except Exception as error:  # PyYAML raises all kinds for values that are none of their type
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(content, DictConfig):
        raise UserError(f"{path} holds no settings (key: value lines)")
    refuse_odd_text(content, f"recipe {name}")
    return content


def _smoke(recipe: DictConfig, name: str) -> DictConfig:
    """In the place of photographs, JPEG files of scenes: they pass through the recipe's own augmentation."""
    source = "scenes" if OmegaConf.select(recipe, "data.source") == "scenes" else "scenes:jpeg"
    return OmegaConf.create({**SMOKE, "name": name, "data": {**SMOKE["data"], "source": source}})


def _check_keys(layer: DictConfig, where: str) -> None:
    known = [item.key for item in documented()]
    groups = [item.key for item in documented() if isinstance(item.default, dict)]

    def visit(node: DictConfig, prefix: str) -> None:
        for key, value in node.items_ex(resolve=False):
            name = f"{prefix}{key!s}"
            inner = any(k.startswith(f"{name}.") for k in known)
            if name in groups and not isinstance(value, DictConfig):
                raise UserError(f"{where}: {name}={value!s:.80} is none of {{KEY: VALUE, ...}}")
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
    check_numbers(settings)
    check_augmentation(settings.augment.auto)
    if not settings.model:
        raise UserError(f"recipe {settings.recipe} names no model; add model=NAME")
    lookup(settings.model)
    dcls_spec(settings)
    if settings.pretrained and settings.init_from:
        raise UserError(f"init_from={settings.init_from} and pretrained=true are two starts; give one of them")
    if len(scale := settings.augment.scale) != 2 or scale[0] > scale[1]:
        raise UserError(f"augment.scale={scale}: give two numbers, the smaller first, such as [0.08,1.0]")
    if settings.publish_weights == "ema" and settings.ema.decay is None:
        raise UserError("publish_weights=ema needs an average of the weights: give ema.decay, or publish_weights=raw")
    mixing = settings.augment.mixup > 0 or settings.augment.cutmix > 0
    if mixing and settings.batch_size % 2:
        raise UserError(f"batch_size={settings.batch_size}: mixup and cutmix pair images, so it must be even")
