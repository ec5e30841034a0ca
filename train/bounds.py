"""What numbers the settings may be: every numeric one has a least and a most, and none is NaN or infinite."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from timm.data.transforms_factory import transforms_imagenet_train

from common import workers
from common.errors import UserError


@dataclass(frozen=True)
class Bounds:
    """Least and most of a setting; `above` and `below` leave the bound itself out."""

    least: float
    most: float
    above: bool = False
    below: bool = False

    def hold(self, value: float) -> bool:
        """Whether a value lies within; NaN does not."""
        over = value > self.least if self.above else value >= self.least
        return over and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        return (
            f"{'above' if self.above else 'at least'} {_short(self.least)} and "
            f"{'below' if self.below else 'at most'} {_short(self.most)}"
        )


_SHARE = Bounds(0, 1)
_SIDE = Bounds(1, 16_384)
_COUNT = Bounds(1, 10**9)
_EPOCHS = Bounds(0, 10**6)
_RATE = Bounds(0, 1000)
_SEED = Bounds(0, 2**63, below=True)

BOUNDS = {
    "num_classes": Bounds(2, 10**6),
    "seed": _SEED,
    "epochs": _EPOCHS,
    "updates": _COUNT,
    "global_batch": Bounds(1, 2**24),
    "batch_size": Bounds(1, 2**20),
    "eval_batch_size": Bounds(1, 2**20),
    "threads": Bounds(1, 1024),
    "data.val_fraction": Bounds(0, 1, below=True),
    "data.image_size": _SIDE,
    "data.eval_size": _SIDE,
    "data.workers": Bounds(0, workers.MOST),
    "data.prefetch": Bounds(1, 1024),
    "data.train_images": _COUNT,
    "data.val_images": _COUNT,
    "data.difficulty": _SHARE,
    "data.scene_seed": _SEED,
    "augment.scale": Bounds(0, 1, above=True),
    "augment.hflip": _SHARE,
    "augment.color_jitter": Bounds(0, 10),
    "augment.erase_prob": _SHARE,
    "augment.mixup": Bounds(0, 1000),
    "augment.cutmix": Bounds(0, 1000),
    "augment.mix_prob": _SHARE,
    "augment.switch_prob": _SHARE,
    "augment.repeats": Bounds(1, 1000),
    "loss.smoothing": Bounds(0, 1, below=True),
    "loss.bce_threshold": Bounds(0, 1, below=True),
    "optim.lr": _RATE,
    "optim.weight_decay": _RATE,
    "optim.layer_decay": Bounds(0, 1, above=True),
    "optim.clip_grad": Bounds(0, 10**9, above=True),
    "schedule.warmup_epochs": _EPOCHS,
    "schedule.warmup_lr": _RATE,
    "schedule.min_lr": _RATE,
    "schedule.cooldown_epochs": _EPOCHS,
    "positions.lr_scale": Bounds(0, 10**6),
    "positions.repulsion_from_epoch": _EPOCHS,
    "ema.decay": Bounds(0, 1, below=True),
    "snapshots.every_updates": _COUNT,
    "snapshots.every_minutes": Bounds(0, 10**6),
    "snapshots.keep_last": _COUNT,
    "snapshots.keep_every": _COUNT,
    "log.every": _COUNT,
    "log.validate_every": _EPOCHS,
    "log.pictures_every": _EPOCHS,
}
"""By setting; of a list, each number. A setting that may be null is not looked at where it is. Terms of the loss keep
those of their own settings in the metadata of the field, as `bounds`."""

_FREE = ("model_args.", "dcls.", "optim.args.")
"""Settings that have no kind of their own: here text may stand for a number."""
_NO_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_INT, _FLOAT = r"\d{1,3}", r"\d{1,6}(\.\d{1,9})?"
_AUTO = re.compile(
    rf"(original|originalr|v0|v0r|3a)(-mstd{_FLOAT})?"
    rf"|rand(-(m{_INT}|n{_INT}|p{_FLOAT}|mstd{_FLOAT}|mmax{_INT}|inc[01]|t[a-z0-9]+))*"
    rf"|augmix(-(m{_INT}|w{_INT}|d{_INT}|a{_FLOAT}|b[01]|mstd{_FLOAT}))*"
)


def all_bounds(settings: Any) -> dict[str, Bounds]:
    """`BOUNDS`, and those in the metadata of fields, by the dotted key of the setting."""
    return BOUNDS | dict(_declared(settings, ""))


def check_numbers(settings: Any) -> None:
    """Raise for a number of a `train.settings.Settings` that is out of its bounds.

    Raises:
        UserError: one is, or is NaN or infinite.
    """
    known = all_bounds(settings)
    for key, value in _numbers(asdict(settings), ""):
        bounds = known.get(key)
        if bounds is not None and not bounds.hold(value):
            raise UserError(f"{key}={value}: must be {bounds}")
        if not math.isfinite(value) or abs(value) >= 2**63:
            raise UserError(f"{key}={value}: must be a finite number")


def check_augmentation(auto: str | None) -> None:
    """Raise unless timm knows this augmentation.

    Raises:
        UserError: it does not.
    """
    if auto is None:
        return
    known = f"augment.auto={auto}: give rand-m9-mstd0.5-inc1 and the like, augmix-m5-w4-d2, original, v0, 3a, or null"
    if not _AUTO.fullmatch(auto):
        raise UserError(known)
    try:
        transforms_imagenet_train(32, auto_augment=auto)
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{known} ({type(error).__name__}: {error})") from error


def _declared(group: Any, prefix: str) -> Iterator[tuple[str, Bounds]]:
    """The bounds that fields of a dataclass, and of those in it, have in their metadata."""
    for item in fields(group):
        value = getattr(group, item.name)
        if is_dataclass(value):
            yield from _declared(value, f"{prefix}{item.name}.")
        elif "bounds" in item.metadata:
            yield prefix + item.name, item.metadata["bounds"]


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    """Every number among nested settings, under the dotted key of its setting."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value
    elif isinstance(value, str) and key.startswith(_FREE) and _NO_NUMBER.fullmatch(value):
        yield key, math.nan  # on the command line YAML takes it for text


def _short(value: float) -> str:
    return "2**63" if value == 2**63 else f"{value:,}"
