"""Glyphs of the `scenes` data set, the object and its distractors: their random draws and how they are painted.

Painting uses exactly rounded arithmetic only (+ - * / sqrt), never a sine or an exponential, whose last bit may
depend on the place in the array: so a scene is the same bits alone and in any batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.data.scene_random import Array, Draws

SHAPES = ("disc", "square", "triangle", "cross")
TEXTURES = ("striped", "dotted", "checked")

_BAR, _SOFT = len(SHAPES), len(SHAPES) + 1  # outlines of distractors only
_PLAIN, _HALVES = len(TEXTURES), len(TEXTURES) + 1  # fills of distractors only
_DISTRACTORS_PER_KIND = 2  # at difficulty 1; the kinds are texture, shape and clutter
_MAX_RADIUS = 0.21 * 1.15  # of the object and the distractors, in image sides
_TILT = 0.16  # range of a class shape's orientation, in turns
_REACH = 1.3  # no outline reaches farther from its centre than this, in radii


class Glyphs(NamedTuple):
    """Things to paint, in a batch of B scenes with S slots each: (B, S) arrays, lengths in pixels.

    `outline` indexes `SHAPES`, `_BAR` or `_SOFT`; `fill` indexes `TEXTURES`, `_PLAIN` or `_HALVES`.
    """

    present: NDArray[np.bool_]
    outline: NDArray[np.int64]
    fill: NDArray[np.int64]
    x: Array
    y: Array
    radius: Array
    cos: Array
    sin: Array
    fill_cos: Array
    fill_sin: Array
    period: Array
    phase: Array  # (B, S, 2)
    ink: Array  # (B, S, 3)
    ground: Array  # (B, S, 3)

    def select(self, scenes: NDArray[np.int64], slots: NDArray[np.int64]) -> "Glyphs":
        """The named glyphs as arrays (G,)."""
        return Glyphs._make(field[scenes, slots] for field in self)


def colours(luminance: Array, saturation: Array, cos: Array, sin: Array) -> Array:
    """(...) -> RGB (..., 3), by the inverse of YCbCr."""
    cb, cr = saturation * cos, saturation * sin
    return np.stack(
        (luminance + 1.402 * cr, luminance - 0.344 * cb - 0.714 * cr, luminance + 1.772 * cb), axis=-1
    ).astype(np.float32)


def draw_glyphs(draws: Draws, labels: NDArray[np.int64], size: int, difficulty: float) -> Glyphs:
    """Draw everything about the glyphs of scenes with the given labels (B,), in images of `size` pixels.

    The last slot is the object. Its outline and its fill are all that the label decides.
    """
    slots = 3 * _DISTRACTORS_PER_KIND + 1
    kind = np.arange(slots) % 3  # 0: a class texture, 1: a class shape, 2: clutter
    choice = draws.uniform(0, 1, slots)
    texture, shape = draws.integer(len(TEXTURES), slots), draws.integer(len(SHAPES), slots)
    bare = np.where(choice < 0.5, _BAR, _SOFT)
    flat = np.where(choice < 0.5, _PLAIN, _HALVES)
    outline = np.where(kind == 1, shape, bare)
    fill = np.where(kind == 0, texture, flat)
    outline[:, -1], fill[:, -1] = labels % len(SHAPES), labels // len(SHAPES)

    # floor(wanted) of each kind are shown: by difficulty, from none to all.
    wanted = draws.uniform(0, 1, 3) + np.float32(difficulty * _DISTRACTORS_PER_KIND)
    present = np.arange(slots)[None] // 3 + 1 <= np.take(wanted, kind, axis=1)
    present[:, -1] = True

    radius = draws.uniform(0.85, 1.15, slots) * np.float32(size * (0.21 - 0.06 * difficulty))
    margin = radius[:, -1:, None]
    object_at = margin + draws.uniform(0, 1, 1, 2) * (size - 2 * margin)
    # Distractors take the farther of two places from the object, so that few hide behind it.
    places = draws.uniform(0, 1, 2, slots, 2) * np.float32(size)
    far = ((places - object_at[:, None]) ** 2).sum(axis=-1).argmax(axis=1)
    at = np.take_along_axis(places, far[:, None, :, None], axis=1)[:, 0]
    at[:, -1] = object_at[:, 0]

    contrast = draws.uniform(0.85, 1.15, slots) * np.float32(0.6 - 0.25 * difficulty)
    contrast *= np.where(draws.uniform(0, 1, slots) < 0.5, np.float32(-0.5), np.float32(0.5))
    middle = draws.uniform(0.35, 0.65, slots)
    saturation = draws.uniform(0.08, 0.26, 2, slots)
    ink = colours(middle + contrast, saturation[:, 0], *draws.direction(slots))
    ground = colours(middle - contrast, saturation[:, 1], *draws.direction(slots))
    upright, any_way = draws.direction(slots, turn=_TILT), draws.direction(slots)
    has_shape = outline < len(SHAPES)
    cos, sin = (np.where(has_shape, tilted, free) for tilted, free in zip(upright, any_way, strict=True))
    fill_cos, fill_sin = draws.direction(slots)
    period = draws.uniform(0.095, 0.125, slots) * np.float32(size)
    phase = draws.uniform(0, 1, slots, 2)
    return Glyphs(
        present, outline, fill, at[..., 0], at[..., 1], radius, cos, sin, fill_cos, fill_sin, period, phase, ink, ground
    )


def _outline_distance(outline: int, u: Array, v: Array) -> Array:
    """Signed distance to an outline at (u, v), in radii, negative inside. The four shapes have about equal areas."""
    u, v_abs = np.abs(u), np.abs(v)
    if outline == _BAR:
        return np.maximum(u - np.float32(1.2), v_abs - np.float32(0.3))
    name = SHAPES[outline]
    if name == "disc":
        return np.sqrt(u * u + v * v) - np.float32(1.0)
    if name == "square":
        return np.maximum(u, v_abs) - np.float32(0.886)
    if name == "triangle":
        sides = np.maximum(v, np.float32(0.866) * u - np.float32(0.5) * v) - np.float32(0.78)
        return np.maximum(sides, np.sqrt(u * u + v * v) - np.float32(_REACH))
    long, short = np.maximum(u, v_abs), np.minimum(u, v_abs)
    return np.maximum(long - np.float32(1.19), short - np.float32(0.4))


def _coverage(outline: int, u: Array, v: Array, radius: Array) -> Array:
    """How much of each pixel lies inside an outline, 0..1; the soft outline fades instead."""
    if outline == _SOFT:
        fade = np.float32(1) - u * u * np.float32(1 / 1.25**2) - v * v * np.float32(1 / 0.85**2)
        return np.clip(np.float32(1.7) * fade, 0, 1)
    return np.clip(np.float32(0.5) - _outline_distance(outline, u, v) * radius, 0, 1)


def _fill_level(fill: int, s: Array, t: Array, period: Array) -> Array:
    """Share of ink (0..1, the rest is ground) at (s, t), in periods; each fill has about half ink, half ground."""
    half = np.float32(0.5)
    if fill == _PLAIN:
        return np.ones_like(s)
    if fill == _HALVES:
        return np.clip(half + s * period, 0, 1)
    s = s - np.floor(s) - half
    name = TEXTURES[fill]
    if name == "striped":
        return np.clip(half + (np.abs(s) - np.float32(0.25)) * period, 0, 1)
    t = t - np.floor(t) - half
    if name == "dotted":
        return np.clip(half + (np.float32(0.399) - np.sqrt(s * s + t * t)) * period, 0, 1)
    tiles = (np.abs(s) - np.float32(0.25)) * (np.abs(t) - np.float32(0.25))
    return np.clip(half + np.float32(4) * tiles * period, 0, 1)


def _by_kind(kind: NDArray[np.int64], paint: Callable[..., Array], *fields: Array) -> Array:
    """Call `paint(kind, *fields)` once for each kind, with the glyphs (first axis) of that kind."""
    out = np.empty_like(fields[0])
    for value in np.unique(kind):
        where = np.flatnonzero(kind == value)
        out[where] = paint(int(value), *(field[where] for field in fields))
    return out


def patch_reach(size: int) -> int:
    """Pixels from the pixel of a glyph's centre to the rim of its patch, in an image of `size` pixels."""
    return int(np.ceil(_REACH * _MAX_RADIUS * size))


def paint_patches(glyphs: Glyphs, reach: int) -> tuple[Array, Array, NDArray[np.int64], NDArray[np.int64]]:
    """Coverage (G, p, p) and colour (G, 3, p, p) of G glyphs on patches of p = 2 * reach + 1 pixels, and their corners.

    The corners (column and row of the first pixel) may lie outside the image, by up to `reach`.
    """
    left, top = (np.floor(centre).astype(np.int64) - reach for centre in (glyphs.x, glyphs.y))
    pixel = np.arange(2 * reach + 1, dtype=np.float32) + np.float32(0.5)
    dx = ((left - glyphs.x).astype(np.float32)[:, None] + pixel)[:, None, :]
    dy = ((top - glyphs.y).astype(np.float32)[:, None] + pixel)[:, :, None]

    def turned(cos: Array, sin: Array, scale: Array) -> tuple[Array, Array]:
        a, b = (cos / scale)[:, None, None], (sin / scale)[:, None, None]
        return dx * a + dy * b, dy * a - dx * b

    radius, period = glyphs.radius[:, None, None], glyphs.period[:, None, None]
    u, v = turned(glyphs.cos, glyphs.sin, glyphs.radius)
    coverage = _by_kind(glyphs.outline, _coverage, u, v, radius)
    s, t = turned(glyphs.fill_cos, glyphs.fill_sin, glyphs.period)
    shifted = glyphs.fill != _HALVES  # the halves meet at the centre
    phase = (glyphs.phase * shifted[:, None])[:, :, None, None]
    level = _by_kind(glyphs.fill, _fill_level, s + phase[:, 0], t + phase[:, 1], period)
    # Light from above makes it look like a thing.
    light = np.float32(1) - np.float32(0.14) * dy / radius
    step = (glyphs.ink - glyphs.ground)[:, :, None, None]
    colour = (glyphs.ground[:, :, None, None] + step * level[:, None]) * light[:, None]
    return coverage, colour, left, top
