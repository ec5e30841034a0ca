"""Changes to a checkpoint's config.json, with the checksum that belongs to the changed text or with the old one."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ABSENT = object()


def sign(raw: dict[str, Any]) -> None:
    """Put in the checksum, computed here on its own."""
    raw.pop("config_sha256", None)
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"))
    raw["config_sha256"] = hashlib.sha256(text.encode("ascii")).hexdigest()


def edit(folder: Path, change: Callable[[dict[str, Any]], None], signed: bool = True) -> None:
    """Rewrite a checkpoint's config.json as a stranger could who knows the format."""
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    change(raw)
    if signed:
        sign(raw)
    path.write_text(json.dumps(raw))


def put(folder: Path, key: str, value: Any, signed: bool = True) -> None:
    """Set one entry, such as `transform|resize`; `ABSENT` removes it."""

    def change(raw: dict[str, Any]) -> None:
        *groups, last = key.split("|")
        for group in groups:
            raw = raw[group]
        if value is ABSENT:
            del raw[last]
        else:
            raw[last] = value

    edit(folder, change, signed)
