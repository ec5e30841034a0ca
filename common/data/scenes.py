"""The generated data set `scenes`: small puzzles made on the fly, for the demo and for tests.

A scene holds one object whose class is the pair (texture, shape), and distractors that carry a class texture
without a class shape, a class shape without a class texture, or neither. Colour, position and background never
see the class. A scene is a pure function of (seed, split, epoch, index), bit-identical alone and in any batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.utils.data import Dataset

from common.data.scene_glyphs import SHAPES, TEXTURES, colours, draw_glyphs, paint_patches, patch_reach
from common.data.scene_random import MAX_EPOCH, MAX_INDEX, Array, Draws, Split, scene_keys
from common.errors import UserError

CLASS_NAMES: tuple[str, ...] = tuple(f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES)

_CLICKS = 24
_CLICK_SIGMA = 0.08  # of the blur, in image sides
_CHUNK = 16  # scenes rendered at once: the temporaries then stay in the processor's cache


@dataclass(frozen=True)
class SceneConfig:
    """What the scenes look like.

    size: side of the square image, in pixels, at least 16.
    difficulty: 0 (large, contrasted object, no distractor) to 1 (small, faint, noisy, six distractors).
    seed: names the data set; two seeds share no scene.
    Raises `UserError` for a value out of range.
    """

    size: int = 64
    difficulty: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.difficulty <= 1.0:
            raise UserError(f"scenes: difficulty={self.difficulty} is out of range; choose a value from 0 to 1")
        if self.size < 16:
            raise UserError(f"scenes: size={self.size} is too small for a scene; choose 16 pixels or more")
        if not 0 <= self.seed < 1 << 63:
            raise UserError(f"scenes: seed={self.seed} is out of range; choose a value from 0 to 2**63 - 1")


class Scene(NamedTuple):
    """One scene.

    image: uint8 (3, H, W). label: index into `CLASS_NAMES`. human_map: float32 (H, W) in 0..1, peak 1.
    mask: bool (H, W), the object. box: (x0, y0, x1, y1) of the mask in pixels, x1 and y1 exclusive.
    """

    image: Tensor
    label: int
    human_map: Tensor
    mask: Tensor
    box: tuple[int, int, int, int]


class SceneBatch(NamedTuple):
    """As `Scene`, stacked: uint8 (B, 3, H, W), int64 (B,), float32 (B, H, W) or None, bool (B, H, W), int64 (B, 4)."""

    images: Tensor
    labels: Tensor
    human_maps: Tensor | None
    masks: Tensor
    boxes: Tensor


class Scenes(Dataset[Scene]):
    """`count` scenes of one split. Training scenes differ in every epoch, validation scenes never do.

    A training loop saves time with `batch`, which renders many scenes at once.
    """

    def __init__(self, count: int, config: SceneConfig, split: Split = "train", epoch: int = 0) -> None:
        if split not in ("train", "val"):
            raise UserError(f"scenes: there is no split {split!r}; choose train or val")
        if not 0 < count <= MAX_INDEX:
            raise UserError(f"scenes: count={count} is out of range; choose at least 1")
        self.count, self.config, self.split = count, config, split
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose scenes are drawn (0 to 2**23 - 1); without effect on the validation split."""
        if not 0 <= epoch < MAX_EPOCH:
            raise UserError(f"scenes: epoch={epoch} is out of range; choose a value from 0 to {MAX_EPOCH - 1}")
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        batch = self.batch([index])
        assert batch.human_maps is not None
        x0, y0, x1, y1 = batch.boxes[0].tolist()
        return Scene(batch.images[0], int(batch.labels[0]), batch.human_maps[0], batch.masks[0], (x0, y0, x1, y1))

    def batch(self, indices: Sequence[int], human_maps: bool = True) -> SceneBatch:
        """The scenes at `indices` (each 0 to len - 1, else `IndexError`), rendered together."""
        for index in indices:
            if not 0 <= index < self.count:
                raise IndexError(f"scene {index} of {self.count}")
        return render_scenes(indices, self.config, self.split, self.epoch, human_maps)


def render_scenes(
    indices: Sequence[int], config: SceneConfig, split: Split = "train", epoch: int = 0, human_maps: bool = True
) -> SceneBatch:
    """Render the scenes named by `indices` (B of them). Each is the same bits whatever the others are.

    Images come in channels_last memory. `human_maps=False` leaves the maps out, which training does not need.
    """
    counter = np.asarray(indices, dtype=np.uint64)
    parts = [
        _render_chunk(counter[i : i + _CHUNK], config, split, epoch, human_maps) for i in range(0, len(counter), _CHUNK)
    ]
    images, labels, maps, masks, boxes = (np.concatenate(part) for part in zip(*parts, strict=True))
    return SceneBatch(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        torch.from_numpy(labels),
        torch.from_numpy(maps) if human_maps else None,
        torch.from_numpy(masks),
        torch.from_numpy(boxes),
    )


def _labels(config: SceneConfig, split: Split, epoch: int, indices: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Each run of 12 indices from a multiple of 12 holds every class once, in random order."""
    n = np.uint64(len(CLASS_NAMES))
    # MAX_INDEX is a bit that no index has: it keeps these keys apart from those of the scenes.
    block_keys = scene_keys(config.seed, split, epoch, (indices // n) | np.uint64(MAX_INDEX))
    order = Draws(block_keys).uniform(0, 1, int(n)).argsort(axis=1, kind="stable")
    return np.take_along_axis(order, (indices % n).astype(np.int64)[:, None], axis=1)[:, 0]


def _smooth_field(lattice: Array, size: int) -> Array:
    """(..., n, n) random values -> (..., size, size), smoothly interpolated."""
    n = lattice.shape[-1]
    at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32((n - 1) / size)
    low = np.minimum(at.astype(np.int64), n - 2)
    part = at - low
    part = part * part * (np.float32(3) - np.float32(2) * part)
    columns = lattice[..., low] + part * (lattice[..., low + 1] - lattice[..., low])
    first, second = columns[..., low, :], columns[..., low + 1, :]
    return first + part[:, None] * (second - first)


def _background(draws: Draws, config: SceneConfig) -> Array:
    """(B, 3, H, W): clouds of colour, and a finer grain."""
    shape = (len(draws.keys), -1, 1, 1)
    base = colours(draws.uniform(0.3, 0.7, 1), draws.uniform(0.0, 0.16, 1), *draws.direction(1))
    clouds = draws.uniform(-0.16, 0.16, 3, 5, 5) + base.reshape(shape)
    strength = draws.uniform(0.04, 0.10 + 0.12 * config.difficulty, 1).reshape(shape)
    grain = draws.uniform(-1, 1, 1, 17, 17) * strength
    return _smooth_field(clouds, config.size) + _smooth_field(grain, config.size)


def _noise(keys: NDArray[np.uint64], size: int, amplitude: float) -> Array:
    """(B, 3, H, W) noise of a camera: triangular, half of it common to the three colours."""
    x = np.arange(size * size, dtype=np.uint32) * np.uint32(0x9E3779B1)
    x = x + (keys >> np.uint64(32)).astype(np.uint32)[:, None]
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)  # lowbias32, C. Wellons' search for integer hashes
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    parts = x.view(np.uint8).reshape(len(keys), size, size, 4)
    scale = np.float32(amplitude / 255)
    common = parts[..., 3].astype(np.float32)
    return np.stack([(common - parts[..., c]) * scale for c in range(3)], axis=1)


def _render_chunk(
    indices: NDArray[np.uint64], config: SceneConfig, split: Split, epoch: int, human_maps: bool
) -> tuple[NDArray[np.uint8], NDArray[np.int64], Array, NDArray[np.bool_], NDArray[np.int64]]:
    """Images (B, H, W, 3), labels (B,), maps (B, H, W), masks (B, H, W), boxes (B, 4)."""
    size = config.size
    keys = scene_keys(config.seed, split, epoch, indices)
    draws = Draws(keys)
    labels = _labels(config, split, epoch, indices)
    all_glyphs = draw_glyphs(draws, labels, size, config.difficulty)
    clicks = draws.uniform(0, 1, _CLICKS)

    # Glyphs may stick out of the image, so the canvas has a rim.
    reach = patch_reach(size)
    rim = reach + 1
    inner = slice(rim, rim + size)
    canvas = np.zeros((len(keys), 3, size + 2 * rim, size + 2 * rim), dtype=np.float32)
    canvas[..., inner, inner] = _background(draws, config)

    slots, scenes = np.nonzero(all_glyphs.present.T)  # slot by slot: the object, in the last slot, is on top
    glyphs = all_glyphs.select(scenes, slots)
    coverage, colour, left, top = paint_patches(glyphs, reach)
    window = _windows(canvas, 2 * reach + 1)
    for slot in np.unique(slots):
        here = slots == slot
        place = (scenes[here], top[here] + rim, left[here] + rim)
        under = window[place]
        window[place] = under + coverage[here, None] * (colour[here] - under)
    mask = np.zeros((len(keys), 1, *canvas.shape[2:]), dtype=np.bool_)
    _windows(mask, 2 * reach + 1)[place] = coverage[here, None] >= 0.5
    mask = mask[:, 0, inner, inner]

    image = canvas[..., inner, inner] + _noise(keys, size, 0.02 + 0.14 * config.difficulty)
    image = np.clip(image * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)
    maps = _human_maps(mask, clicks) if human_maps else np.zeros((len(keys), 0, 0), dtype=np.float32)
    return np.ascontiguousarray(image.transpose(0, 2, 3, 1)), labels, maps, mask, _boxes(mask)


def _windows(canvas: NDArray[Any], side: int) -> NDArray[Any]:
    """A writable view (B, row, column, C, side, side) of every square patch of a canvas (B, C, H, W)."""
    batch, channels, height, width = canvas.shape
    b, c, y, x = canvas.strides
    shape = (batch, height - side + 1, width - side + 1, channels, side, side)
    return as_strided(canvas, shape, (b, y, x, c, y, x))


def _human_maps(mask: NDArray[np.bool_], clicks: Array) -> Array:
    """Blurred clicks on the object: mask (B, H, W) and `_CLICKS` uniform numbers each -> (B, H, W) with peak 1."""
    size = mask.shape[-1]
    scene, pixel = np.nonzero(mask.reshape(len(mask), -1))
    area = np.bincount(scene, minlength=len(mask))
    first = np.cumsum(area) - area
    chosen = pixel[first[:, None] + (clicks * area[:, None]).astype(np.int64)]  # (B, clicks): pixels of the object
    hits = np.zeros((len(mask), size * size), dtype=np.float64)
    np.add.at(hits, (np.arange(len(mask))[:, None], chosen), 1.0)
    maps = hits.reshape(mask.shape)
    for axis in (1, 2):
        maps = gaussian_filter1d(maps, _CLICK_SIGMA * size, axis=axis, mode="constant", truncate=4.0)
    return (maps / maps.max(axis=(1, 2), keepdims=True)).astype(np.float32)


def _boxes(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(B, H, W) -> (B, 4): x0, y0, x1, y1, the last two exclusive."""
    size = mask.shape[-1]
    columns, rows = np.asarray(mask.any(axis=1)), np.asarray(mask.any(axis=2))
    return np.stack(
        (columns.argmax(1), rows.argmax(1), size - columns[:, ::-1].argmax(1), size - rows[:, ::-1].argmax(1)), axis=1
    )
