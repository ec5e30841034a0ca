"""From the bytes of a picture file to a PIL image: JPEG by libjpeg-turbo (simplejpeg), everything else by PIL."""

from __future__ import annotations

import io
import struct

import simplejpeg
from PIL import Image, UnidentifiedImageError

from common.errors import UserError

_DAMAGED = (UnidentifiedImageError, OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)


def decode_picture(content: bytes, where: str) -> Image.Image:
    """RGB image of an encoded picture.

    Args:
        content: the file's bytes.
        where: the file or record, for the message.

    Raises:
        UserError: the bytes are no picture, or a damaged one.
    """
    if content[:2] == b"\xff\xd8":
        try:
            return Image.fromarray(simplejpeg.decode_jpeg(content, "RGB"))
        except ValueError:
            pass  # CMYK and other kinds that only PIL converts; it also has the last word on damage
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except _DAMAGED as error:
        raise UserError(
            f"{where} does not decode as a picture ({type(error).__name__}: {str(error)[:120]}; {len(content)} bytes). "
            "Get the file again or take it out of the data set."
        ) from error
