"""In which order samples come: a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from train.data.batch import BatchSource, SampleKey


class SampleOrder:
    """The endless sequence of training samples."""

    def __init__(self, source: BatchSource, seed: int, repeats: int = 1) -> None:
        self.count, self.repeats = len(source), repeats
        self.epoch_order = lru_cache(maxsize=2)(lambda epoch: self._epoch_order(source, seed, epoch))

    def _epoch_order(self, source: BatchSource, seed: int, epoch: int) -> NDArray[np.int64]:
        # With r repeats an epoch is as long as ever: it holds r versions of every r-th image of the order.
        return np.repeat(source.order(seed, epoch), self.repeats)[: self.count]

    def keys(self, start: int, stop: int) -> list[SampleKey]:
        """Samples `start` to `stop` of the sequence."""
        keys = []
        for place in range(start, stop):
            epoch, slot = divmod(place, self.count)
            keys.append(SampleKey(epoch, int(self.epoch_order(epoch)[slot]), slot % self.repeats))
        return keys


class TrainingSampler(Sampler[list[SampleKey]]):
    """Micro-batches of one process, from update `start` to update `stop`."""

    def __init__(
        self, order: SampleOrder, start: int, stop: int, batch_size: int, accumulate: int, rank: int, world: int
    ) -> None:
        self.order, self.start, self.stop = order, start, stop
        self.batch_size, self.accumulate, self.rank, self.world = batch_size, accumulate, rank, world

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for micro in range(self.start * self.accumulate, self.stop * self.accumulate):
            first = (micro * self.world + self.rank) * self.batch_size
            yield self.order.keys(first, first + self.batch_size)


class ValidationSampler(Sampler[list[SampleKey]]):
    """Batches of every `world`-th image, from the `rank`-th on: each image once, over all processes."""

    def __init__(self, count: int, batch_size: int, rank: int, world: int) -> None:
        self.mine = range(rank, count, world)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for first in range(0, len(self.mine), self.batch_size):
            yield [SampleKey(0, index, 0) for index in self.mine[first : first + self.batch_size]]
