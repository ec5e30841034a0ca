"""ClickMe records made of generated scenes, so that a benchmark needs no download."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from common.data.scenes import SceneConfig, Scenes
from common.data.tfrecord import encode_example, write_records


def write_clickme(folder: Path, count: int, different: int = 32) -> Path:
    """A shard of `count` records in the published layout, of which the first `different` are repeated.

    Pixels are doubled from 128 px scenes: 256 px, JPEG of quality 90.
    """
    scenes = Scenes(min(count, different), SceneConfig(128), "val")
    payloads = []
    for number in range(len(scenes)):
        scene = scenes[number]
        image = scene.image.permute(1, 2, 0).numpy()
        human = (255 * scene.human_map / scene.human_map.max()).byte().numpy()
        values = {"image": _jpeg(image), "heatmap": _jpeg(human), "label": number}
        payloads.append(encode_example(values))
    write_records(folder / "val-0.tfrecords", (payloads[n % len(payloads)] for n in range(count)))
    return folder


def _jpeg(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).resize((256, 256), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
