"""Folders of images, one per class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from timm.data import ImageNetInfo

from common.errors import UserError
from common.text import one_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


def scan_class_folders(root: Path, layout: str) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Pictures in class folders and their subfolders; hidden class folders are passed over.

    Links are followed, but no folder is entered twice in a class, and none that is, holds or lies in a class folder. A
    pipe or a device that bears a picture's name is listed like a picture, so that whoever reads it is told.

    Args:
        root: holds the class folders.
        layout: what is expected, for the message.

    Returns:
        The folders' names in order, the pictures' paths by class and in order, and the place of each one's class
        among the names.

    Raises:
        UserError: no such folder, no class folders in it, one without pictures, two that are one folder, or a name
            that is not UTF-8.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}; expected {layout}")
    names = sorted(entry.name for entry in os.scandir(root) if _is_folder(entry) and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{root} holds no class folders; expected {layout}")
    places = {os.path.realpath(root): "."}
    for name in names:
        place = os.path.realpath(root / name)
        if place in places:
            raise UserError(f"class folder {root / name} is a link to {root / places[place]}; remove one of them")
        places[place] = name
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted(_pictures_below(str(root / name), list(places)[1:]))
        if not found:
            raise UserError(f"class folder {root / name} holds no pictures ({', '.join(SUFFIXES)}); fill or remove it")
        for file in found:
            _check_name(file)
        files += found
        labels += [label] * len(found)
    return names, files, np.array(labels)


def _pictures_below(top: str, classes: Sequence[str]) -> Iterator[str]:
    """Files with a picture's suffix in a class folder and its subfolders; `classes` are the real paths of all."""
    left, entered = [top], set(classes)
    while left:
        folders = []
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if _is_folder(entry):
                    folders.append(entry)
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                    yield entry.path
        for folder in sorted(folders, key=lambda entry: (entry.is_symlink(), entry.name)):
            place = os.path.realpath(folder.path)
            if place not in entered and not (folder.is_symlink() and any(_nested(place, known) for known in classes)):
                entered.add(place)
                left.append(folder.path)


def _nested(a: str, b: str) -> bool:
    """Whether one of two folders lies in the other."""
    return os.path.commonpath((a, b)) in (a, b)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


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


def names_of_classes(count: int, classes: Sequence[str] | None = None) -> list[str] | None:
    """What to call a model's classes: by their names where known, by ImageNet's where they are 1000, else None."""
    if classes is None and count == 1000:
        classes = imagenet_names()
    if classes == imagenet_names():
        return [name.partition(",")[0] for name in classes]  # without the synonyms
    return [one_line(name) for name in classes] if classes else None
