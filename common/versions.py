"""Versions of Python, of this code and of the libraries that a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform

_LIBRARIES = ("dcls-align", "torch", "torchvision", "timm", "dcls", "accelerate", "datasets", "safetensors")


def library_versions() -> dict[str, str]:
    """Versions of Python, of this code and of the libraries a result depends on; `unknown` if not installed."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions
