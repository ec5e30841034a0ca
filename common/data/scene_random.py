"""Random numbers of the `scenes` data set: integer hashes of (seed, split, epoch, index), no hidden state.

So a scene never depends on its neighbours in a batch, on the process that makes it, or on what was drawn before.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Split = Literal["train", "val"]

MAX_EPOCH, MAX_INDEX = 1 << 23, 1 << 39
"""Exclusive bounds: in a key's 64 bits the epoch takes 23, the index 39; one is the split's, one `scene_keys`'s own."""

_TURN: Array = np.cos(np.arange(1024) * (2 * np.pi / 1024)).astype(np.float32)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): a bijection of 64-bit integers that scatters them."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def scene_keys(seed: int, split: Split, epoch: int, indices: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64-bit keys (B,) of scenes. For one seed they are distinct, as split, epoch and index fill separate bits."""
    place = 0 if split == "val" else (1 << 63) | (epoch << 40)
    return _mix((indices | np.uint64(place)) ^ _mix(np.array([seed], dtype=np.uint64)))


class Draws:
    """Random numbers for a batch of scenes: the n-th draw of a scene is a hash of (its key, n)."""

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self.keys, self.drawn = keys, 0

    def uniform(self, low: float, high: float, *shape: int) -> Array:
        """(B, *shape), from low to high in 2**24 steps."""
        n = int(np.prod(shape))
        counter = np.arange(self.drawn + 1, self.drawn + n + 1, dtype=np.uint64)
        self.drawn += n
        bits = _mix(self.keys[:, None] + counter * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
        unit = bits.astype(np.float32) * np.float32(2**-24)
        return (np.float32(low) + np.float32(high - low) * unit).reshape(len(self.keys), *shape)

    def integer(self, n: int, *shape: int) -> NDArray[np.int64]:
        """(B, *shape), from 0 to n - 1."""
        return (self.uniform(0, 1, *shape) * np.float32(n)).astype(np.int64)

    def direction(self, *shape: int, turn: float = 1.0) -> tuple[Array, Array]:
        """Cosine and sine of an angle within +-turn/2 turns. From a table: computed ones may differ in the last bit."""
        angle = (self.uniform(-turn / 2, turn / 2, *shape) * np.float32(len(_TURN))).astype(np.int64)
        return _TURN[angle], _TURN[angle - len(_TURN) // 4]
