"""Arguments of `python -m evaluate explain`: images as files and folders, a class as index or name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from common.data.decoding import check_file
from common.data.folders import SUFFIXES, imagenet_names, names_of_classes
from common.errors import UserError, did_you_mean


def find_images(given: Sequence[Path]) -> list[Path]:
    """The files themselves, and the images that lie in folders, sorted; each once.

    Raises:
        UserError: nothing there, a folder without images, or a file that cannot be an image.
    """
    found: dict[Path, Path] = {}
    for path in given:
        for file in _images_in(path) if path.is_dir() else [path]:
            check_file(file)
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _images_in(folder: Path) -> list[Path]:
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if files := [path for path in inside if path.suffix.lower() in SUFFIXES and path.is_file()]:
        return files
    folders = [path.name for path in inside if path.is_dir()]
    more = f"; name its folders ({', '.join(folders[:3])}{', ...' * (len(folders) > 3)}) instead" if folders else ""
    raise UserError(f"folder {folder} holds no pictures ({', '.join(SUFFIXES)}){more}")


def distinct_names(paths: Sequence[Path]) -> dict[str, Path]:
    """Each file by what its results are called: its name, with as many folders before it as it takes to be distinct."""
    names = next(names for names in _names(paths) if len(set(names)) == len(names))
    return dict(zip(names, paths))


def _names(paths: Sequence[Path]) -> Iterator[list[str]]:
    folders = [path.resolve().parts[1:-1] for path in paths]
    for depth in range(max(map(len, folders)) + 1):
        before = ["".join(f"{folder}-" for folder in place[len(place) - min(depth, len(place)) :]) for place in folders]
        yield [first + path.stem for first, path in zip(before, paths)]
        yield [first + path.name for first, path in zip(before, paths)]
    yield [f"{number}-{path.name}" for number, path in enumerate(paths, 1)]  # where a folder's name has a dash


def find_class(text: str, count: int, names: Sequence[str] | None) -> int:
    """The index of a class from its index or its name, in any case; ImageNet's synonyms count.

    Args:
        text: what was typed.
        count: of the model's classes.
        names: of the classes, where known.

    Raises:
        UserError: no such class, or several of that name.
    """
    if text.isdecimal():
        if int(text) < count:
            return int(text)
        raise UserError(f"--target {text}: the model has classes 0 to {count - 1}")
    if names is None:
        raise UserError(f"--target {text}: the names of the model's classes are unknown; give an index below {count}")
    known = [[name] for name in names]
    if names == names_of_classes(1000):
        known = [synonyms.split(", ") for synonyms in imagenet_names()]
    places = [place for place, synonyms in enumerate(known) if text.lower() in map(str.lower, synonyms)]
    if not places:
        raise UserError(f"--target {text}: no such class; {did_you_mean(text, [n for some in known for n in some])}")
    if len(places) > 1:
        raise UserError(f"--target {text}: classes {', '.join(map(str, places))} have that name; give an index")
    return places[0]
