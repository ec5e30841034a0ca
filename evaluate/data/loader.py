"""Batches of a data set, read and transformed by processes of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.errors import UserError
from common.models.transform import ModelTransform
from evaluate.data.interface import Batch, EvalData, Read
from evaluate.maps.boxes import boxes_in_view

_Item = tuple[Tensor, Tensor | None, int, int, str, Tensor | None]


class _Items(Dataset[_Item | UserError]):
    """Pictures through a model's geometry, for the loader's workers."""

    def __init__(self, data: EvalData, transform: ModelTransform) -> None:
        self.data, self.transform, self.geometry = data, transform, transform.geometry()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> _Item | UserError:
        try:
            picture = self.data.picture(index)
        except UserError as error:  # told by whoever asked for the batch: the loader would wrap it in a traceback
            return error
        boxes = None
        if picture.boxes is not None:
            boxes = boxes_in_view(
                torch.tensor(picture.boxes).reshape(-1, 4), picture.image.width, picture.image.height, self.transform
            )
        return self.geometry(picture.image), picture.human, picture.label, index, picture.image_id, boxes


def _collate(items: list[_Item | UserError]) -> Read:
    bad = [str(item) for item in items if isinstance(item, UserError)]
    good = [item for item in items if not isinstance(item, UserError)]
    if not good:
        return Read(None, bad)
    pixels, human, labels, indices, ids, boxes = zip(*good)
    maps = None if human[0] is None else torch.stack(human)
    objects = None if boxes[0] is None else list(boxes)
    numbers = torch.tensor(labels), torch.tensor(indices)
    return Read(Batch(torch.stack(pixels), maps, *numbers, list(ids), objects), bad)


def read_batches(
    data: EvalData, transform: ModelTransform, batches: Sequence[list[int]], workers: int
) -> Iterator[Read]:
    """The pictures of each batch in turn, read and transformed by `workers` processes that live until the last.

    Args:
        data: where they are.
        transform: of the model.
        batches: places in the data set.
        workers: processes; 0 reads here.
    """
    items = _Items(data, transform)
    yield from DataLoader(items, batch_sampler=batches, collate_fn=_collate, num_workers=workers)


def in_batches(indices: Sequence[int], size: int) -> list[list[int]]:
    """Places in the data set, so many at a time."""
    return [[int(index) for index in indices[start : start + size]] for start in range(0, len(indices), size)]


def load_batches(
    data: EvalData, transform: ModelTransform, indices: Sequence[int], batch_size: int, workers: int
) -> Iterator[Batch]:
    """The pictures at `indices` in that order, in batches; see `read_batches`.

    Raises:
        UserError: a picture cannot be read.
    """
    for batch, bad in read_batches(data, transform, in_batches(indices, batch_size), workers):
        if bad:
            raise UserError(bad[0])
        assert batch is not None
        yield batch


def choose_indices(count: int, limit: int | None, seed: int) -> np.ndarray:
    """All indices, or a seeded random subset of `limit` of them, in ascending order."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))
