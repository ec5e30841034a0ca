"""Images in class folders, or in one folder with a table of labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from common.data.decoding import open_image
from common.data.folders import imagenet_places, names_of_classes, scan_class_folders
from common.errors import UserError
from common.text import one_line
from evaluate.data.interface import EvalData, ModelView, Picture, Source, hash_of, state_of
from evaluate.data.labels import Box, read_labels


class FolderData(EvalData):
    """Photographs without human maps: class folders, or one folder with a table of labels.

    Args:
        root: a folder of class folders, or any folder if `labels` is given. Folders named as `classes` are, are
            those; where all bear WordNet ids they mean ImageNet's; else they count in sorted order.
        labels: see `evaluate.data.labels`.
        num_classes: of the model that a table's labels belong to.
        classes: names of the model's classes, in order of index, where known.

    Raises:
        UserError: nothing there, a class folder without pictures, a damaged table, a label out of range.
    """

    name = "imagefolder"
    layout = "class folders of pictures"
    has_human_maps = False

    def __init__(
        self, root: Path, labels: Path | None = None, num_classes: int = 1000, classes: Sequence[str] | None = None
    ) -> None:
        if not root.is_dir():
            raise UserError(f"no data folder at {root}; give --data-root the folder that holds the pictures")
        self.root = root
        self.place = str(root.resolve())
        self.boxes: list[list[Box]] | None = None
        if labels:
            self.files, self.labels, self.boxes = read_labels(labels, num_classes)
            self.num_classes = num_classes
        else:
            self.files, self.labels, self.num_classes = _from_folders(root, classes)
        self.has_boxes = self.boxes is not None
        self.class_names = names_of_classes(self.num_classes, classes)

    @classmethod
    def opener(cls, source: Source) -> Callable[[ModelView], EvalData]:
        """The folder with the labels that it has for a model."""

        @cache
        def opened(num_classes: int, classes: tuple[str, ...] | None) -> FolderData:
            return cls(source.root, source.labels, num_classes, None if classes is None else list(classes))

        return lambda model: opened(model.num_classes, model.classes)

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, index: int) -> Picture:
        """Decode one photograph."""
        name = self.files[index]
        boxes = self.boxes[index] if self.boxes else None
        return Picture(open_image(self.root / name), None, self.labels[index], one_line(name), boxes)

    def fingerprint(self) -> str:
        """Hash of the files' names, sizes and times of modification, their labels and boxes."""
        states = (state_of(self.root / name) for name in self.files)
        return hash_of(zip(self.files, states, self.labels, self.boxes or self.labels))


def _from_folders(root: Path, classes: Sequence[str] | None) -> tuple[list[str], list[int], int]:
    """Files relative to the root, their labels, and how many classes there are."""
    names, files, labels = scan_class_folders(root, f"{root}/CLASS/picture.jpg, or a table by --labels FILE.csv")
    places = imagenet_places(names)
    if classes is not None and set(names) <= set(classes):
        labels, count = np.array([classes.index(name) for name in names])[labels], len(classes)
    elif places is not None:
        labels, count = places[labels], 1000
    elif classes is not None and len(classes) == len(names):
        raise UserError(
            f"{root} has the classes {', '.join(names[:5])}, ..., the checkpoint {', '.join(classes[:5])}, ...; name "
            "the folders as the classes it was trained on"
        )
    else:
        count = len(names)
    return [os.path.relpath(file, root) for file in files], labels.tolist(), count


ENTRIES = (FolderData,)
