"""What shops call a picture: decoded alike whatever its format, or refused with the reason why."""

from __future__ import annotations

import resource
import struct
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from itemsage_model.encoders.pictures.decoding import decode, kind_of
from schemas.picture_tables import PICTURE_FAULTS, UnusablePicture
from tests.itemsage_model.encoders.pictures.drawn import HTML, SVG, drawn, jpeg, png_header, saved

SIDE = 64
MOST = 50_000_000


def pixels(content: bytes) -> npt.NDArray[np.int16]:
    picture = decode(content, SIDE, MOST)
    assert picture.mode == "RGB"
    assert min(picture.size) == SIDE
    return np.asarray(picture).astype(np.int16)


def fault_of(content: bytes, most: int = MOST) -> UnusablePicture:
    with pytest.raises(UnusablePicture) as refused:
        decode(content, SIDE, most)
    assert refused.value.reason in PICTURE_FAULTS
    return refused.value


def is_like(found: npt.NDArray[np.int16], wanted: npt.NDArray[np.int16], most: float = 6.0) -> bool:
    return found.shape == wanted.shape and float(np.abs(found - wanted).mean()) < most


PLAIN = pixels(saved(drawn(), "PNG"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_the_formats_of_shops_are_decoded_alike(kind: str) -> None:
    assert is_like(pixels(saved(drawn(), kind)), PLAIN)


def test_a_grey_picture_is_grey_in_all_three_colours() -> None:
    found = pixels(saved(drawn().convert("L"), "JPEG"))
    assert np.abs(found[..., 0] - found[..., 2]).max() == 0
    assert is_like(found, pixels(saved(drawn().convert("L").convert("RGB"), "PNG")))


def test_inks_become_colours() -> None:
    found = pixels(saved(drawn().convert("CMYK"), "JPEG", quality=95))
    red, green, blue = found[SIDE // 2, SIDE // 3]
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_is_looked_up(kind: str) -> None:
    assert is_like(pixels(saved(drawn().quantize(64), kind)), PLAIN, most=12)


def test_what_is_transparent_is_white() -> None:
    picture = drawn().convert("RGBA")
    picture.putalpha(Image.new("L", picture.size, 0))
    assert (pixels(saved(picture, "PNG")) == 255).all()
    greys = Image.new("LA", (80, 80), (0, 0))
    assert (pixels(saved(greys, "PNG")) == 255).all()


def test_sixteen_bits_a_number_are_no_white_picture() -> None:
    grey = np.linspace(0, 65535, 80 * 80).astype(np.uint16).reshape(80, 80)
    found = pixels(saved(Image.fromarray(grey), "PNG"))
    assert found[2].mean() < 30
    assert 110 < found.mean() < 145
    assert found[-3].mean() > 225


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_telephones_picture_stands_upright(orientation: int) -> None:
    turns = {2: [1], 3: [2], 4: [3], 5: [4], 6: [5], 7: [6], 8: [7]}
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    lying = drawn().transpose(Image.Transpose(undo[orientation])) if orientation in turns else drawn()
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert is_like(pixels(saved(lying, "JPEG", exif=exif, quality=95)), PLAIN)


def test_damaged_exif_does_not_matter() -> None:
    assert is_like(pixels(saved(drawn(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95)), PLAIN)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [drawn(seed) for seed in (0, 1, 2)]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    assert is_like(pixels(content), PLAIN, most=14)


def test_a_large_jpeg_is_decoded_small_and_looks_alike() -> None:
    large = drawn(size=(3200, 2400))
    assert is_like(pixels(saved(large, "JPEG", quality=92)), pixels(saved(large, "PNG")))


def test_a_jpeg_is_not_decoded_smaller_than_it_is_needed() -> None:
    lines = Image.fromarray(np.tile(np.repeat(np.array([0, 255], np.uint8), 5), (150, 16))).convert("RGB")
    assert is_like(pixels(saved(lines, "JPEG", quality=95)), pixels(saved(lines, "PNG")), most=25)
    assert pixels(saved(lines, "PNG")).std() > 50


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (SVG, "svg"),
        (b"<svg width='1'/>", "svg"),
        (HTML, "html"),
        (b"<html>", "html"),
        (b"\x00" * 500, "unknown_format"),
        (b"no picture at all", "unknown_format"),
        (saved(drawn(), "TIFF"), "refused_format"),
        (saved(drawn(), "BMP"), "refused_format"),
        (b"%PDF-1.7", "refused_format"),
        (jpeg()[:20], "broken_header"),
        (saved(drawn(), "PNG")[:20], "truncated"),
        (saved(drawn(), "WEBP")[:16], "broken_header"),
        (jpeg()[:3000], "truncated"),
        (saved(drawn(), "PNG")[:3000], "truncated"),
        (saved(drawn(size=(4000, 20)), "PNG"), "too_narrow"),
    ],
    ids=lambda one: one if isinstance(one, str) else None,
)  # fmt: skip
def test_what_is_no_picture_is_named(content: bytes, reason: str) -> None:
    assert fault_of(content).reason == reason


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "GIF"])
def test_a_file_cut_off_is_refused_in_every_format(kind: str) -> None:
    content = saved(drawn(3, (640, 480)), kind)
    assert fault_of(content[: len(content) // 2]).reason in ("truncated", "broken_pixels", "broken_header")


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_are_a_finding_and_never_another_error(seed: int) -> None:
    random = np.random.default_rng(seed)
    kind = ["JPEG", "PNG", "WEBP", "GIF", "AVIF"][seed % 5]
    content = bytearray(saved(drawn(seed), kind))
    for place in random.integers(4, len(content), 30):
        content[place] = random.integers(256)
    with suppress(UnusablePicture):
        assert decode(bytes(content), SIDE, MOST).mode == "RGB"


@pytest.mark.parametrize("size", [(10_000, 10_001), (40_000, 40_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fault = fault_of(png_header(*size), 100_000_000)
    assert fault.reason in ("too_many_pixels", "broken_header")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB; its pixels would be 300 MB


def test_the_limit_of_pixels_is_the_shops() -> None:
    content = saved(drawn(), "PNG")
    assert fault_of(content, 320 * 240 - 1).reason == "too_many_pixels"
    assert fault_of(content, 320 * 240 - 1).found == "320 x 240"
    assert decode(content, SIDE, 320 * 240).size == (85, 64)


def test_a_jpegs_bomb_is_refused_too() -> None:
    content = bytearray(jpeg())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", 20_000, 20_000)
    assert fault_of(bytes(content)).reason == "too_many_pixels"


def test_what_files_say_they_are() -> None:
    assert [kind_of(saved(drawn(), kind)) for kind in ("JPEG", "PNG", "GIF", "WEBP", "AVIF")] == [
        "JPEG", "PNG", "GIF", "WEBP", "AVIF",
    ]  # fmt: skip
    assert kind_of(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00heicmif1") == "HEIC"
