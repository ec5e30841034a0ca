"""One gate for images: what becomes of 16 bits, transparency and orientation; decoders agree to the bit."""

import io
import itertools
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from common.data.decoding import MAX_RATIO, decode_image, open_image
from common.errors import UserError

GREY = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def saved(image: Image.Image, kind: str, **more: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def pixels(content: bytes) -> np.ndarray:
    image = decode_image(content, "x")
    assert image.mode == "RGB"
    return np.asarray(image)


def by_pillow(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def big_endian_tiff() -> bytes:
    tags = {256: 256, 257: 256, 258: 16, 259: 1, 262: 1, 273: 200, 277: 1, 278: 256, 279: 2 * 65536}
    wide = {256, 257, 273, 278, 279}
    head = b"MM\0*" + struct.pack(">IH", 8, len(tags))
    for tag, value in tags.items():
        head += struct.pack(">HHII", tag, 4, 1, value) if tag in wide else struct.pack(">HHIHH", tag, 3, 1, value, 0)
    return head.ljust(200, b"\0") + GREY.astype(">u2").tobytes()


SIXTEEN = {
    "png": saved(Image.fromarray(GREY), "PNG"),
    "tiff": saved(Image.fromarray(GREY), "TIFF"),
    "tiff of MM": big_endian_tiff(),
    "tiff, lzw": saved(Image.fromarray(GREY), "TIFF", compression="tiff_lzw"),
    "pgm": b"P5 256 256 65535\n" + GREY.astype(">u2").tobytes(),
}


@pytest.mark.parametrize("name", SIXTEEN)
def test_16_bit_grey_becomes_its_upper_byte_as_opencv_has_it(name: str) -> None:
    found = pixels(SIXTEEN[name])
    assert np.array_equal(found, np.repeat((GREY // 256)[..., None], 3, 2))
    theirs = cv2.imdecode(np.frombuffer(SIXTEEN[name], np.uint8), cv2.IMREAD_COLOR)
    assert theirs is not None and np.abs(theirs.astype(int) - found).max() <= 1  # some of its decoders round


def test_16_bit_grey_is_as_16_bit_colour_is_by_pillow() -> None:
    ok, colour = cv2.imencode(".png", np.repeat(GREY[..., None], 3, 2))
    assert ok and np.array_equal(pixels(colour.tobytes()), pixels(SIXTEEN["png"]))


def test_white_is_zero_and_10_bits_are_understood() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 0
    content = SIXTEEN["tiff"]
    place = content.index(struct.pack("<HHI", 262, 3, 1)) + 8
    inverted = content[:place] + struct.pack("<H", 0) + content[place + 2 :]
    assert np.array_equal(pixels(inverted), 255 - pixels(content))
    ten = np.arange(1024, dtype=">u2")
    found = pixels(b"P5 32 32 1023\n" + ten.tobytes())[..., 0].ravel()
    assert np.array_equal(found, np.round(np.arange(1024) * 65535 / 1023).astype(int) // 256)


@pytest.mark.parametrize(
    "content",
    [
        saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"),
        saved(Image.fromarray(GREY.astype(np.float32) / 65535), "TIFF"),
        saved(Image.fromarray(GREY.astype(np.float32)), "PPM"),
    ],
    ids=["32 bits", "0 to 1", "pfm"],
)
def test_grey_whose_range_nothing_tells_is_refused(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^some/file: grey of mode [IF] .*save it with 8 or 16 bits$"):
        decode_image(content, "some/file")


RANDOM = np.random.default_rng(0).integers(0, 256, (33, 47, 4), dtype=np.uint8)


def test_transparency_is_dropped_and_orientation_ignored() -> None:
    for kind in ("PNG", "WEBP"):
        content = saved(
            Image.fromarray(RANDOM, "RGBA"), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})
        )
        assert np.array_equal(pixels(content), RANDOM[..., :3])
    plain = Image.fromarray(RANDOM[..., :3])
    exif = Image.Exif()
    exif[274] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        turned = saved(plain, kind, exif=exif)
        assert Image.open(io.BytesIO(turned)).getexif()[274] == 6
        assert np.array_equal(pixels(turned), pixels(saved(plain, kind)))
    assert np.array_equal(pixels(saved(plain, "TIFF", exif=exif)), np.rot90(RANDOM[..., :3], -1))  # by Pillow itself


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (9, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert (np.abs(pixels(content).astype(int) - [255, 0, 0]) < 6).all(), kind


JPEGS = list(itertools.product([10, 75, 95], [0, 1, 2], [False, True], ["RGB", "L"]))


@pytest.mark.parametrize(("quality", "subsampling", "progressive", "mode"), JPEGS)
def test_a_jpeg_has_the_bits_that_pillow_gives_it(quality: int, subsampling: int, progressive: bool, mode: str) -> None:
    for size in ((1, 1), (7, 5), (33, 47)):
        image = Image.fromarray(RANDOM[: size[0], : size[1], :3]).convert(mode)
        more = {"subsampling": subsampling} if mode == "RGB" else {}
        content = saved(image, "JPEG", quality=quality, progressive=progressive, **more)
        assert np.array_equal(pixels(content), by_pillow(content))


def test_photographs_have_the_bits_that_pillow_gives_them(shared_data: Path) -> None:
    files = sorted(path for part in ("imagenet_val", "photos") for path in (shared_data / part).rglob("*.[jJ][pP]*"))
    assert len(files) >= 40
    for path in files[:: len(files) // 40]:
        assert np.array_equal(np.asarray(open_image(path)), np.asarray(Image.open(path).convert("RGB"))), path


OTHERS = "CMYK JPEG, CMYK TIFF, 1 PNG, LA PNG, P GIF, P BMP, 1 PPM, YCbCr TIFF, RGB WEBP"


@pytest.mark.parametrize(("mode", "kind"), [pair.split() for pair in OTHERS.split(", ")])
def test_other_kinds_are_as_pillow_has_them(mode: str, kind: str) -> None:
    content = saved(Image.fromarray(RANDOM[..., :3]).convert("L" if mode == "LA" else "RGB").convert(mode), kind)
    assert np.array_equal(pixels(content), by_pillow(content))


def test_an_image_at_the_limit_of_long_and_thin_is_taken() -> None:
    assert pixels(saved(Image.new("RGB", (3 * MAX_RATIO, 3)), "PNG")).shape == (3, 3 * MAX_RATIO, 3)
    with pytest.raises(UserError, match=f"301 x 3 pixels, one side more than {MAX_RATIO} times the other"):
        pixels(saved(Image.new("RGB", (3 * MAX_RATIO + 1, 3)), "PNG"))
