"""Bytes that claim to be images: bombs of few bytes, files of other kinds, damaged ones."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(kind: str, size: tuple[int, int] = (40, 30)) -> bytes:
    """A sound image of random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def jpeg_head(width: int, height: int, progressive: bool = False) -> bytes:
    """A JPEG that begins as one of that size, and ends after its first bytes."""
    tables = encoded("JPEG").partition(b"\xff\xc0")[0] + encoded("JPEG").partition(b"\xff\xc0")[2][17:]
    before, rest = tables.split(b"\xff\xc4", 1)
    frame = struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\x01\x22\x00\x02\x11\x01\x03\x11\x01"
    return before + (b"\xff\xc2" if progressive else b"\xff\xc0") + frame + b"\xff\xc4" + rest[:600] + b"\xff\xd9"


def png(width: int, height: int, content: bytes | None = None, text: bytes = b"") -> bytes:
    """A grey PNG; without `content` all of its pixels are there, and black."""
    rows = zlib.compress(bytes((width + 1) * height)) if content is None else content
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + text + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with_text(count: int) -> bytes:
    """A small PNG whose comment unpacks to so many bytes."""
    return png(40, 30, text=_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(count))))


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """A GIF of one frame."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


def tiff(width: int, height: int, tile: tuple[int, int] | None = None, compression: int = 8) -> bytes:
    """A TIFF of one strip, or of one tile of a size of its own, whose bytes unpack to 1 MB."""
    data, start = zlib.compress(bytes(10**6)), 300
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1}
    place = (324, 325, {322: tile[0], 323: tile[1]}) if tile else (273, 279, {278: 2**32 - 1})
    tags |= {place[0]: start, place[1]: len(data), **place[2]}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(start, b"\0") + data


def webp(width: int, height: int) -> bytes:
    """A WEBP of a canvas of that size around an image of 40 x 30."""
    frame = encoded("WEBP")[12:]
    animated = b"ANMF" + struct.pack("<I", len(frame) + 16) + bytes(6) + struct.pack("<I", 39)[:3]
    animated += struct.pack("<I", 29)[:3] + bytes(4) + frame
    canvas = bytes([2, 0, 0, 0]) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6) + animated
    return b"RIFF" + struct.pack("<I", len(body)) + body


SIZE = r"promises 65000 x 65000 pixels, more than 178,956,970|exceeds limit of 178956970 pixels"
RATIO = "one side more than 100 times the other"
UNKNOWN = "bytes of none of the formats JPEG, PNG"
DAMAGED = "does not decode as a picture"

HOSTILE: dict[str, tuple[bytes, str]] = {
    "bomb.jpg": (jpeg_head(65000, 65000), SIZE),
    "bomb_progressive.jpg": (jpeg_head(65000, 65000, progressive=True), SIZE),
    "long.jpg": (jpeg_head(65000, 1), RATIO),
    "bomb.png": (png(65000, 65000, b""), SIZE),
    "wide.png": (png(100_000, 1), RATIO),
    "tall.png": (png(1, 100_000), RATIO),
    "text.png": (png_with_text(10**8), DAMAGED),
    "bomb.gif": (gif((65000, 65000), (65000, 65000)), SIZE),
    "bomb_frame.gif": (gif((8, 8), (65000, 65000)), SIZE),
    "bomb.tif": (tiff(65000, 65000), SIZE),
    "long.tif": (tiff(65000, 2), RATIO),
    "bomb_tile.tif": (tiff(40, 30, (60000, 60000)), DAMAGED),
    "bomb_tile_raw.tif": (tiff(40, 30, (60000, 60000), compression=1), DAMAGED),
    "bomb.webp": (webp(65000, 65000), SIZE),
    "long.webp": (webp(16000, 30), RATIO),
    "bomb.bmp": (b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 65000, 65000, 1, 24, *[0] * 6), SIZE),
    "bomb.ppm": (b"P6 65000 65000 255\n", SIZE),
    "bomb.pgm": (b"P5 65000 65000 65535\n", SIZE),
    "long.ppm": (b"P6 100000 1 255\n" + bytes(300_000), RATIO),
    "eps.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n", UNKNOWN),
    "svg.png": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', UNKNOWN),
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", UNKNOWN),
    "icon.png": (b"\0\0\1\0\1\0\0\0\0\0\1\0\x20\0\x28\0\0\0\x16\0\0\0" + bytes(60), UNKNOWN),
    "photoshop.jpg": (b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30000, 30000, 8, 3) + bytes(99), UNKNOWN),
    "zeros.jpg": (bytes(1000), UNKNOWN),
    "empty.jpg": (b"", UNKNOWN),
    "magic.jpg": (b"\xff\xd8\xff", f"{DAMAGED}|{UNKNOWN}"),
    **{f"cut.{kind.lower()}": (encoded(kind)[: -len(encoded(kind)) // 3], DAMAGED)
       for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM")},
}  # fmt: skip
"""Files by name, and what is said of each."""
