"""Bytes that anybody may have written -> pixels, or the reason why there are none.

What a file is, its own first bytes say. Size and format are known from its header, before a pixel is decoded: a picture
beyond the limit costs no memory. Only the formats of `FORMATS` have a decoder at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from schemas.picture_tables import UnusablePicture

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF")
"""Formats that are decoded, as Pillow names them."""

_BEGINNINGS = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"),
    (b"BM", "BMP"), (b"II*\x00", "TIFF"), (b"MM\x00*", "TIFF"), (b"%PDF", "PDF"), (b"8BPS", "Photoshop"),
    (b"\x00\x00\x01\x00", "ICO"), (b"\xff\x0a", "JPEG XL"), (b"\x1f\x8b", "gzip"), (b"PK\x03\x04", "zip"),
)  # fmt: skip
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF"}
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body", b"<!--")

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF's orientation -> what makes the picture stand upright."""


def kind_of(content: bytes) -> str:
    """What a file says that it is: a format's name, svg, html, empty; unknown where nothing is recognised."""
    if not content:
        return "empty"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    if content[4:8] == b"ftyp":
        brands = [content[start : start + 4] for start in (8, *range(16, 64, 4))]
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "unknown")
    for beginning, name in _BEGINNINGS:
        if content.startswith(beginning):
            return name
    head = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n\0").lower()
    if head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!doctype svg", b"<!--")) and b"<svg" in head):
        return "svg"
    return "html" if head.startswith(_HTML) else "unknown"


def decode(content: bytes, shorter_side: int, max_pixels: int) -> Image.Image:
    """Decode a picture and scale it: RGB, upright, its shorter side `shorter_side` pixels long.

    Of an animation the first frame counts; what is transparent is white. A large JPEG is decoded at a half, a quarter
    or an eighth of its size, never smaller than it is needed.

    Args:
        content: The file.
        shorter_side: Pixels of the shorter side.
        max_pixels: Most pixels of a picture, by its header.

    Raises:
        UnusablePicture: it is no picture that can be used; the reason is one of PICTURE_FAULTS.
    """
    kind = kind_of(content)
    if kind in ("empty", "svg", "html"):
        raise UnusablePicture(kind)
    if kind not in FORMATS:
        raise UnusablePicture("unknown_format" if kind == "unknown" else "refused_format", kind)
    with warnings.catch_warnings():
        # Its pixels are counted here, and odd metadata is none of a product's business.
        warnings.simplefilter("ignore")
        with _naming("broken_header"):
            picture = Image.open(BytesIO(content), formats=[kind])
        with picture, _naming("broken_pixels"):
            return _upright(_scaled(picture, shorter_side, max_pixels), _orientation(picture))


@contextmanager
def _naming(reason: str) -> Iterator[None]:
    """Whatever Pillow's decoders raise on damaged files, which differs by format and version, as a finding.

    Args:
        reason: What it is called where nothing better is known.
    """
    try:
        yield
    except UnusablePicture:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise UnusablePicture("too_many_pixels", str(error)) from None
    except UnidentifiedImageError:
        raise UnusablePicture("broken_header") from None
    except Exception as error:
        named = "truncated" if "truncated" in str(error).lower() else reason
        raise UnusablePicture(named, f"{type(error).__name__}: {error}"[:200]) from None


def _scaled(picture: Image.Image, shorter_side: int, max_pixels: int) -> Image.Image:
    """RGB, scaled; refused by the header alone where there are too many pixels."""
    width, height = picture.size
    if width * height > max_pixels:
        raise UnusablePicture("too_many_pixels", f"{width} x {height}")
    if not width * height:
        raise UnusablePicture("broken_header", f"{width} x {height}")
    scale = shorter_side / min(width, height)
    target = (max(shorter_side, round(width * scale)), max(shorter_side, round(height * scale)))
    if max(target) > _LONGEST * shorter_side:
        raise UnusablePicture("too_narrow", f"{width} x {height}")
    if picture.format == "JPEG":
        picture.draft("RGB", target)
    picture.load()
    return _as_rgb(picture).resize(target, Image.Resampling.BICUBIC, reducing_gap=3.0)


_LONGEST = 50
"""Times its shorter side that a picture may be long: a strip of one pixel would become a large picture."""


def _as_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB, before white where it is transparent; of 16 bits a number the upper eight."""
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith(("I", "F")):
        numbers = np.asarray(picture).astype(np.float64)
        return Image.fromarray((numbers / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    return picture.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    """What EXIF says of a picture's orientation; 1 = upright, as is one whose EXIF is damaged."""
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture
