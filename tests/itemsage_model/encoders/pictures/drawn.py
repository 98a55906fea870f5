"""Pictures that tests draw: what shops have, and what they have by mistake."""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def drawn(seed: int = 0, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A picture whose left half is red, and whose right half has soft blobs of other colours."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    picture = coarse.resize(size, Image.Resampling.BICUBIC)
    picture.paste((255, 0, 0), (0, 0, size[0] // 2, size[1]))
    return picture


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def jpeg(seed: int = 0, size: tuple[int, int] = (320, 240), **options: Any) -> bytes:
    return saved(drawn(seed, size), "JPEG", **({"quality": 92} | options))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is large, and has hardly a byte."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
HTML = b"\n<!DOCTYPE html><html><body>404: no such picture</body></html>"
