"""ClickMe: images with maps of where people look for the object, from the published TFRecord shards.

The data set and the preprocessing are those of Fel et al., "Harmonizing the object recognition strategies of
deep neural networks with humans" (NeurIPS 2022, arXiv 2211.04533). A record has three features: `image` and
`heatmap`, JPEG of 256x256 in colour and in grey, and `label`, the ImageNet class. The functions below the
data set turn batches of them into what the original TensorFlow pipeline gives, on any device.
"""

import os
import re
from bisect import bisect_right
from collections.abc import Collection
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import simplejpeg
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from common.data.folders import SUFFIXES
from common.data.manifest import check_files
from common.data.tfrecord import RecordIndex, Value, index_records, parse_example, read_record
from common.errors import UserError

HUMAN_CEILING = 0.65753
"""Spearman correlation that people reach with each other, on ClickMe version 1. Fel et al. (2022), and the
study this project builds on, divide the mean over images by it (Harmonization, evaluation/clickme.py)."""

PUBLISHED_AT = "storage.googleapis.com/serrelab/prj_harmonization/dataset/click-me"
PUBLISHED_SHARDS = {"val": 17, "train": 318}
RECORD_SIDE = 256
MAP_SIDE = 224
NUM_CLASSES = 1000

T = TypeVar("T")

_BLUR_SIDE = 64
_BLUR_SIZE = 10
_BLUR_SIGMA = 10.0


class Record(NamedTuple):
    """One image of ClickMe."""

    image: np.ndarray
    """(256, 256, 3) uint8, RGB."""
    heatmap: np.ndarray
    """(256, 256) uint8: the human map as stored, before `blur_human_map`."""
    label: int
    """ImageNet class, 0 to 999."""
    image_id: str
    """Shard and place in it, such as "val-0/00003"."""


class ClickMe(Dataset[Record]):
    """ClickMe as a map-style data set that holds nothing but where its records lie.

    Args:
        root: a shard, or a folder that holds `val-*.tfrecords` or `train-*.tfrecords`, itself or in its
            subfolder `val/` or `train/`. Where both kinds lie there, the validation shards are meant. They
            come in the order of their numbers.

    Raises:
        UserError: no shards there, or a shard that is empty, damaged or not what `manifest.json` lists. Reading a
            record raises it too, where the checksum fails, a feature is missing, or a picture does not decode.
    """

    left_out = 0
    """Records that a conversion left out."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.shards: list[Path] = find_shards(Path(root).expanduser())
        check_files(self.shards)
        self._indices: list[RecordIndex] = [index_records(shard) for shard in self.shards]
        for shard, index in zip(self.shards, self._indices, strict=True):
            if not len(index.offsets):
                raise UserError(f"{shard} is empty: download the shard again, from {PUBLISHED_AT}.")
        self._ends: list[int] = list(accumulate(len(index.offsets) for index in self._indices))

    @property
    def missing_shards(self) -> list[str]:
        """Names of the published shards that are not there: a score over the rest is partial."""
        return absent_shards({shard.name for shard in self.shards})

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        shard, number = self._locate(index)
        path = self.shards[shard]
        payload = read_record(path, int(self._indices[shard].offsets[number]), number)
        try:
            return _decode_record(payload, f"{path.stem}/{number:05d}")
        except ValueError as error:
            raise UserError(
                f"{path}: record {number} is no ClickMe record: {error}. Get it again from {PUBLISHED_AT}."
            ) from error

    def image_id(self, index: int) -> str:
        """The `image_id` of a record, without reading it."""
        shard, number = self._locate(index)
        return f"{self.shards[shard].stem}/{number:05d}"

    def _locate(self, index: int) -> tuple[int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} records")
        index %= len(self)
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)


def find_shards(root: Path) -> list[Path]:
    """The shards `ClickMe(root)` reads, in the order of their numbers; UserError where there are none."""
    if found := shards_in(root):
        return found
    state = "holds no ClickMe shards" if root.is_dir() else "does not exist"
    if any(path.suffix.lower() in SUFFIXES for pattern in ("*", "*/*") for path in root.glob(pattern)):
        raise UserError(f"{root} {state}, but pictures: give --data imagefolder for them")
    raise UserError(
        f"{root} {state}. Expected {root}/val-0.tfrecords ... val-16.tfrecords (or in {root}/val/), as "
        f"published at https://{PUBLISHED_AT}/val/val-0.tfrecords and so on: python -m evaluate.clickme download."
    )


def shards_in(root: Path) -> list[Path]:
    """The shards at a place, in the order of their numbers, if there are any; a file is taken for one."""
    if root.is_file():
        return [root]
    for split in PUBLISHED_SHARDS:
        for folder in (root, root / split):
            found = {
                int(match[1]): path
                for path in folder.glob(f"{split}-*.tfrecords")
                if (match := re.fullmatch(rf"{split}-(\d+)\.tfrecords", path.name))
            }
            if found:
                return [found[number] for number in sorted(found)]
    return []


def absent_shards(present: Collection[str]) -> list[str]:
    """Names of the published shards, of the split that some come from, that are not among them."""
    split = min(present).partition("-")[0]
    names = [f"{split}-{number}.tfrecords" for number in range(PUBLISHED_SHARDS.get(split, 0))]
    return [name for name in names if name not in present]


def _decode_record(payload: bytes, image_id: str) -> Record:
    """Raises ValueError, saying what is wrong with the record."""
    features = parse_example(payload)
    image, heatmap = (_single(features, name, bytes) for name in ("image", "heatmap"))
    return make_record(image, heatmap, _single(features, "label", int), image_id)


def make_record(image: bytes, heatmap: bytes, label: int, image_id: str) -> Record:
    """A record of its JPEG files and its label; raises ValueError, saying what is wrong with them."""
    pixels = _decode_jpeg("image", image, "RGB")
    human = _decode_jpeg("heatmap", heatmap, "GRAY")[:, :, 0]
    if not 0 <= label < NUM_CLASSES:
        raise ValueError(f"its label is {label}, not an ImageNet class from 0 to {NUM_CLASSES - 1}")
    return Record(pixels, human, label, image_id)


def _single(features: dict[str, list[Value]], name: str, kind: type[T]) -> T:
    if name not in features:
        raise ValueError(f"it has no feature {name!r}, only {sorted(features)}")
    values = features[name]
    if len(values) != 1 or not isinstance(value := values[0], kind):
        kinds = sorted({type(value).__name__ for value in values})
        raise ValueError(f"its feature {name!r} holds {len(values)} values {kinds}, not one {kind.__name__}")
    return value


def _decode_jpeg(name: str, data: bytes, colorspace: str) -> np.ndarray:
    """(256, 256, C) uint8, equal to tf.io.decode_jpeg.

    TensorFlow takes libjpeg's fast integer DCT and its smooth chroma upsampling. Pillow, OpenCV and
    torchvision take the accurate DCT, which moves a quarter of the pixels by two grey levels or more.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if (height, width) != (RECORD_SIDE, RECORD_SIDE):
            raise ValueError(f"it is {width}x{height}, not {RECORD_SIDE}x{RECORD_SIDE}")
        return simplejpeg.decode_jpeg(data, colorspace, fastdct=True, fastupsample=False)
    except ValueError as error:
        raise ValueError(f"its feature {name!r} does not decode as JPEG ({error})") from error


def tf_resize(x: Tensor, size: int) -> Tensor:
    """Bilinear resize as tf.image.resize does it: half-pixel centres, no antialiasing.

    It rounds as TensorFlow does (start + difference * fraction, along x, then y), which decides grey levels
    once they are cut to integers: `F.interpolate` puts one in 4,000 off by a level.

    Args:
        x: (B, C, H, W) float32.
        size: the side of the result.

    Returns:
        (B, C, size, size) float32 on the same device.
    """
    x = _resize_first(x.permute(3, 0, 2, 1), size)  # (W, B, H, C)
    return _resize_first(x.permute(2, 1, 0, 3), size).permute(1, 3, 0, 2)


def _resize_first(x: Tensor, size: int) -> Tensor:
    """The first axis of (N, ...) resized to `size`: there whole rows are copied, several times faster on a CPU."""
    below, above, fraction = _neighbours(len(x), size, x.device)
    x = x.contiguous()
    start, end = x.index_select(0, below), x.index_select(0, above)
    return (end - start).mul_(fraction.view(-1, *[1] * (x.ndim - 1))).add_(start)


def _neighbours(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The two source places between which each of `size` targets lies, and how far between: each (size,)."""
    # float32 throughout, as in TensorFlow: the fractions must carry the same rounding.
    scale = torch.tensor(length, dtype=torch.float32, device=device) / size
    centre = (torch.arange(size, dtype=torch.float32, device=device) + 0.5) * scale - 0.5
    below = centre.floor()
    return below.clamp(min=0).long(), centre.ceil().clamp(max=length - 1).long(), centre - below


def paper_image(image: Tensor) -> Tensor:
    """The photograph as the study's models get it, before their own transforms.

    Args:
        image: (B, H, W, 3) uint8.

    Returns:
        (B, 3, 224, 224) uint8: resized in float32 and cut to integers, as tf.cast does.
    """
    return tf_resize(image.float().permute(0, 3, 1, 2), MAP_SIDE).to(torch.uint8)


def blur_human_map(heatmap: Tensor) -> Tensor:
    """The human map that scores are computed with: resized to 64, blurred, resized to 224.

    The Gaussian has 10 taps and sigma 10 and pads with zeros (Harmonization, common/blur.py). Having an even
    number of taps it cannot lie centred: in the original the map moves left by one pixel of the 64 and keeps
    its height, and so it does here.

    Args:
        heatmap: (B, H, W) uint8.

    Returns:
        (B, 224, 224) float32, on the scale of the input, 0 to 255.
    """
    small = tf_resize(heatmap[:, None].float(), _BLUR_SIDE)
    # A "SAME" convolution with an even kernel pads one cell less before than after: taps at -4 ... 5.
    before, after = (_BLUR_SIZE - 1) // 2, _BLUR_SIZE // 2
    places = torch.arange(-before, after + 1, dtype=torch.float64, device=heatmap.device)
    padded = F.pad(small, (before, after, before, after))
    # Sums of products instead of conv2d, which some GPUs run in TF32 by default.
    blurred = (padded.unfold(3, _BLUR_SIZE, 1) * _gaussian_taps(places, centre=1)).sum(-1)
    blurred = (blurred.unfold(2, _BLUR_SIZE, 1) * _gaussian_taps(places, centre=0)).sum(-1)
    return tf_resize(blurred, MAP_SIDE)[:, 0]


def _gaussian_taps(places: Tensor, centre: int) -> Tensor:
    weights = torch.exp(-((places - centre) ** 2) / (2 * _BLUR_SIGMA**2))
    return (weights / weights.sum()).float()
