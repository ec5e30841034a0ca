"""Random numbers that are functions of where they are used, not of what ran before.

Every choice for a sample is drawn from a generator seeded by (seed, epoch, index, repeat), every choice for a
batch by (seed, update, micro-batch, rank). So no random state of a worker matters, and none is ever saved.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def key_seed(*key: int) -> int:
    """A 64-bit seed made of several integers; nearby keys give unrelated seeds."""
    words = np.random.SeedSequence([int(k) for k in key]).generate_state(2, np.uint32)
    return int(words[0]) << 32 | int(words[1])


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Draw from generators seeded by `key` (Python's, NumPy's, torch's on the CPU), then put the old ones back.

    timm and torchvision draw from these global generators and take no other.
    """
    seed = key_seed(*key)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would queue a call per sample for each CUDA device
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def random_state() -> dict[str, Any]:
    """State of this process's generators (of model layers that draw, such as drop path), as plain values."""
    kind, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    version, numbers, following = state["python"]
    random.setstate((version, tuple(numbers), following))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
