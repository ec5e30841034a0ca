"""What a study is: checkpoints that one command evaluates and compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from common.models.zoo import lookup
from evaluate.maps.frames import PROTOCOLS
from evaluate.named import Named
from evaluate.network.requests import Request, labels


@dataclass(frozen=True)
class Study(Named):
    """One study; `function` takes the folder of `--weights-dir`, or None, and gives a list of `Request`."""

    pairs: tuple[tuple[str, str], ...] = ()
    """Checkpoints to compare, first and second, by their names in tables."""
    protocols: tuple[str, ...] = tuple(PROTOCOLS)
    """Those that are taken where none is asked for."""
    given: ClassVar[frozenset[str]] = frozenset({"weights_dir"})


def plan_of(requests: Sequence[Request], data_root: Path | None) -> str:
    """What a study would fetch and compute, for `--dry-run`."""
    lines = [f"data: {data_root}", "model                     weights"]
    for name, request in zip(labels(requests), requests):
        kind, _, rest = request.spec.partition(":")
        source = request.spec
        if kind == "zenodo" and (published := lookup(rest).published):
            source = f"download {published.url}"
        elif kind == "timm":
            source = f"download {request.spec} from the hub"
        lines.append(f"{name:<25} {source}")
    return "\n".join(lines)
