"""From an image file to RGB pixels: the one gate that training, evaluation and `explain` share.

What is decided here, for all of them:

- Formats: those of `FORMATS`, told by their first bytes, whatever the file is called. Pillow knows more, some of which
  start other programs (PostScript starts Ghostscript).
- Limits: `MAX_BYTES`, `MAX_PIXELS` and `MAX_RATIO`; the last two are asked of the header, before memory is.
- JPEG is decoded by libjpeg-turbo (simplejpeg), CMYK and all other formats by Pillow. Where both could, they give the
  same bits.
- Left alone, as by the study's and timm's loaders: colour profiles, and orientation in EXIF (of TIFF alone Pillow
  follows it). Transparency is dropped: the colours below it count. Of an animation the first frame is taken.
- 16 bits a channel become 8 by their upper byte, in grey as Pillow does it in colour.
- 32-bit and floating-point grey is refused: the file does not say which values are black and white.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from common.errors import UserError, first_line

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP")
"""By Pillow's names; PPM includes PGM and PBM."""
MAX_PIXELS = 178_956_970
"""Of one image, as Pillow's own limit; ImageNet's largest has 50 million."""
MAX_RATIO = 100
"""Of the longer to the shorter side: resized to 256 pixels on its short side, such an image has 6.5 million."""
MAX_BYTES = 2**30
"""Of one file: `MAX_PIXELS` in 16-bit RGB, uncompressed."""

_AGAIN = "Get the file again or take it out of the data set."
_KINDS = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}


def open_image(path: str | Path) -> Image.Image:
    """Decode an image file, see `read_file` and `decode_image`."""
    return decode_image(read_file(path), str(path))


def read_file(path: str | Path) -> bytes:
    """Content of an image file.

    Raises:
        UserError: see `check_file`, or it cannot be read.
    """
    size = check_file(path)
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def check_file(path: str | Path) -> int:
    """Bytes of an image file, which is not opened: a pipe would block, a device never end.

    Raises:
        UserError: absent, no regular file, or larger than `MAX_BYTES`.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        raise UserError(f"no picture at {path}") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = next((kind for is_kind, kind in _KINDS.items() if is_kind(found.st_mode)), "a folder")
        raise UserError(f"{path} is {kind}, not an image file; take it out")
    if found.st_size > MAX_BYTES:
        raise UserError(f"{path} has {found.st_size:,} bytes, an image file at most {MAX_BYTES:,}. {_AGAIN}")
    return found.st_size


def decode_image(content: bytes, where: str) -> Image.Image:
    """RGB image of an encoded image, see the head of this module.

    Args:
        content: the file's bytes.
        where: the file or record, for the message.

    Raises:
        UserError: the bytes are no image of a known format, a damaged one, or one beyond the limits.
    """
    if content[:2] == b"\xff\xd8":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
            _check_size(width, height, where)
            if colours not in ("CMYK", "YCCK"):  # whose bits differ from Pillow's by 1
                return Image.fromarray(simplejpeg.decode_jpeg(content, "RGB"))
        except ValueError:
            pass  # Pillow has the last word on damage
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(*image.size, where)
            grey = image.mode[0] in "IF"
            return (_grey_of_8_bits(image, where) if grey else image).convert("RGB")
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(
            f"{where} does not decode as a picture: {len(content)} bytes of none of the formats {', '.join(FORMATS)}. "
            f"{_AGAIN}"
        ) from error
    except Exception as error:  # decoders of damaged bytes raise many kinds
        raise UserError(
            f"{where} does not decode as a picture ({type(error).__name__}: {first_line(error)[:120]}; "
            f"{len(content)} bytes). {_AGAIN}"
        ) from error


def _check_size(width: int, height: int, where: str) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{where} does not decode: its header promises {width} x {height} pixels, more than {MAX_PIXELS:,}. "
            f"{_AGAIN}"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise UserError(
            f"{where} does not decode: {width} x {height} pixels, one side more than {MAX_RATIO} times the other. "
            f"{_AGAIN}"
        )


def _grey_of_8_bits(image: Image.Image, where: str) -> Image.Image:
    """Grey of 9 to 16 bits by its 8 upper ones."""
    bits, inverted = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
        inverted = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0  # Pillow leaves it at that
    known = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if not known:
        raise UserError(
            f"{where}: grey of mode {image.mode} ({image.format}), and nothing says which values are black and white; "
            "save it with 8 or 16 bits"
        )
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(255 - grey if inverted else grey)
