"""Folders of photographs, one for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from timm.data import ImageNetInfo

from common.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


def scan_class_folders(root: Path, layout: str) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Pictures in class folders and their subfolders; hidden folders are passed over.

    Args:
        root: holds the class folders.
        layout: what is expected, for the message.

    Returns:
        The folders' names in order, the pictures' paths by class and in order, and the place of each one's class
        among the names.

    Raises:
        UserError: no such folder, no class folders in it, one without pictures, or a name that is not UTF-8.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}; expected {layout}")
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{root} holds no class folders; expected {layout}")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted(
            os.path.join(folder, file)
            for folder, _, inside in os.walk(root / name, followlinks=True)
            for file in inside
            if os.path.splitext(file)[1].lower() in SUFFIXES
        )
        if not found:
            raise UserError(f"class folder {root / name} holds no pictures ({', '.join(SUFFIXES)}); fill or remove it")
        for file in found:
            _check_name(file)
        files += found
        labels += [label] * len(found)
    return names, files, np.array(labels)


def _check_name(path: str) -> None:
    """Names go into tables and messages, so each must be text."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{os.fsencode(path)!r}: the name is not UTF-8; rename it") from error


def imagenet_places(names: Sequence[str]) -> NDArray[np.int64] | None:
    """Index of each class among those of ImageNet-1k; None unless every name is the WordNet id of one."""
    places = {wnid: place for place, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    return np.array([places[name] for name in names]) if set(names) <= set(places) else None


def imagenet_names() -> list[str]:
    """English names of the 1000 ImageNet classes, in order of index, each with its synonyms."""
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(place) for place in range(info.num_classes())]
