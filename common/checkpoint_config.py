"""`config.json` of a checkpoint: its fields, what each must be, and the checksum over them.

The file may be a stranger's. So nothing in it is used before its kind and bounds are checked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import reprlib
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torchvision.transforms import InterpolationMode

from common.dcls import INTERPOLATIONS
from common.dcls_spec import INITS, MOST_PIXELS, WEIGHT_INITS, DclsSpec
from common.errors import UserError, first_line
from common.kinds import (
    FIGURE,
    FLAG,
    NOTHING,
    TABLE,
    Kind,
    check_table,
    either,
    line,
    listed,
    number,
    one_of,
    table_of,
    text,
    whole,
)
from common.model_arguments import check_arguments
from common.models.transform import ModelTransform

FORMAT = 1
CHECKSUM = "config_sha256"
MOST_CLASSES = 1_000_000
_MOST_BYTES = 2**26  # names of a million classes fit in
_ADVICE = "Get the folder again from where it was published, or publish the checkpoint again"

log = logging.getLogger(__name__)


@dataclass
class CheckpointConfig:
    """What `config.json` holds."""

    model: str
    """A name of the zoo, or `timm:ARCHITECTURE`."""
    num_classes: int
    """Number of outputs."""
    transform: ModelTransform
    """Preprocessing the model was trained for."""
    dcls: DclsSpec | None = None
    """Surgery, or None for a plain model."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the architecture, see `common.model_arguments`."""
    classes: list[str] | None = None
    """Name of every class, in order of index, where known."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration of the run."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Figures measured at the end of training, by name."""
    command: str = ""
    """The command that made it."""
    license: str = "MIT"
    """Licence of the weights."""
    shared: dict[str, str] = field(default_factory=dict)
    """For every further name of a shared tensor, the name under which it is stored."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Python, this code and the libraries."""
    weights_sha256: str = ""
    """SHA-256 of `model.safetensors`."""
    config_sha256: str = ""
    """`config_digest` of the other entries; empty in checkpoints of before there was one."""
    format: int = FORMAT
    """Version of this layout."""


_LINE = line(1000)
_DIGEST = Kind("a SHA-256 in hexadecimal", lambda v: isinstance(v, str) and bool(re.fullmatch("[0-9a-f]{64}", v)))
_FIELDS = {
    "model": _LINE,
    "num_classes": whole(1, MOST_CLASSES),
    "transform": TABLE,
    "dcls": either(TABLE, NOTHING),
    "model_args": TABLE,
    "classes": either(listed(_LINE, 1, MOST_CLASSES), NOTHING),
    "recipe": TABLE,
    "metrics": table_of(either(FIGURE, FLAG, _LINE, NOTHING)),
    "command": text(100_000),
    "license": text(1000),
    "shared": table_of(_LINE),
    "versions": table_of(_LINE),
    "weights_sha256": _DIGEST,
    CHECKSUM: _DIGEST,
    "format": whole(FORMAT, FORMAT),
}
_REQUIRED = ("model", "num_classes", "transform", "weights_sha256", "format")
_TRANSFORM = {
    "resize": whole(1, 4096),
    "crop": whole(1, 4096),
    "interpolation": one_of(*(mode.value for mode in InterpolationMode)),
    "mean": listed(number(-1000, 1000), 3, 3),
    "std": listed(number(1e-3, 1000), 3, 3),
    "squash": FLAG,
}
_TRANSFORM_REQUIRED = ("resize", "crop", "interpolation", "mean", "std")
_DCLS = {
    "interpolation": one_of(*INTERPOLATIONS),
    "dilated_kernel_size": whole(1, MOST_PIXELS),
    "kernel_count": whole(1, MOST_PIXELS**2),
    "rule": either(_LINE, listed(_LINE, 1, 10_000)),
    "share_positions": FLAG,
    "weight_init": one_of(*WEIGHT_INITS),
    "init": one_of(*INITS),
}
_DCLS_REQUIRED = ("interpolation", "dilated_kernel_size", "kernel_count")


def config_digest(raw: dict[str, Any]) -> str:
    """SHA-256 of all entries but the checksum itself, as JSON with sorted keys and without spaces."""
    entries = {key: value for key, value in raw.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def config_text(config: CheckpointConfig, where: Path) -> tuple[str, str]:
    """The content of `config.json`, and its checksum. Figures that are not finite become null.

    Raises:
        UserError: `read_config` would refuse it.
        TypeError: a value that JSON does not know.
    """
    raw = json.loads(json.dumps(_finite(asdict(config))))
    raw[CHECKSUM] = config_digest(raw)
    _check(raw, str(where))
    return json.dumps(raw, indent=2) + "\n", raw[CHECKSUM]


def parse_config(path: Path) -> CheckpointConfig:
    """Read a `config.json`.

    Raises:
        UserError: no JSON, another format, another checksum than it states, or an entry that is not what it must be.
    """
    raw = _read(path)
    _check_sum(raw, path)
    _check(raw, str(path))
    transform: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw["transform"].items()}
    raw["transform"] = ModelTransform(**transform)
    try:
        raw["dcls"] = DclsSpec(**raw["dcls"]) if raw.get("dcls") else None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return CheckpointConfig(**raw)


def _read(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes, more than any such file. {_ADVICE}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {first_line(error)}). {_ADVICE}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} is damaged: it holds a {type(raw).__name__}, no mapping. {_ADVICE}")
    if type(raw.get("format")) is not int or raw["format"] != FORMAT:
        raise UserError(f"{path}: format {reprlib.repr(raw.get('format'))}; this version reads format {FORMAT}")
    return raw


def _check_sum(raw: dict[str, Any], path: Path) -> None:
    stated = raw.get(CHECKSUM)
    if CHECKSUM not in raw:
        _note_unchecked(path)
    elif stated != (found := config_digest(raw)):
        raise UserError(
            f"{path} has changed since it was published: the SHA-256 of its entries is {found[:16]}..., "
            f"{CHECKSUM} says {str(stated)[:16]}... {_ADVICE}"
        )


@cache
def _note_unchecked(path: Path) -> None:
    log.warning("%s has no %s: a change in it would not be noticed; publish the checkpoint again", path, CHECKSUM)


def _check(raw: dict[str, Any], where: str) -> None:
    check_table(raw, _FIELDS, where, required=_REQUIRED)
    check_table(raw["transform"], _TRANSFORM, where, "transform.", _TRANSFORM_REQUIRED)
    if raw.get("dcls"):
        check_table(raw["dcls"], _DCLS, where, "dcls.", _DCLS_REQUIRED)
    check_arguments(raw.get("model_args", {}), where)
    classes, outputs = raw.get("classes"), raw["num_classes"]
    if classes is not None and len(classes) != outputs:
        raise UserError(f"{where}: classes has {len(classes)} names for num_classes {outputs}; there must be as many")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(value: Any) -> Any:
    """The value with null for every number that is not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
