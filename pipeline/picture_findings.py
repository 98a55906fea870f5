"""What `doctor` can say of pictures: whether the model opens, and whether pictures that lie in the table decode."""

from __future__ import annotations

from collections.abc import Iterator

from itemsage_model.encoders.pictures.decoding import decode
from itemsage_model.encoders.pictures.stored import open_encoder
from pipeline.findings import Finding
from schemas.errors import InputError, SettingsError
from schemas.picture_tables import UnusablePicture
from schemas.settings import Settings

_SHORTER_SIDE = 64
"""Pixels to which pictures are decoded to see whether they do."""


def encoder_findings(settings: Settings) -> Iterator[Finding]:
    """Whether the picture encoder opens, and makes vectors of the length that the settings say."""
    if not settings.pictures.folder:
        return
    try:
        encoder = open_encoder(settings.pictures.folder)
    except (SettingsError, InputError) as error:
        yield Finding("fault", "picture encoder", str(error))
        return
    named = f"{encoder.name}, {encoder.length} numbers"
    if encoder.length != settings.model.image_length:
        yield Finding("fault", "picture encoder", f"{named}; set model.image_length = {encoder.length}")
    else:
        yield Finding("ok", "picture encoder", named)


def picture_fault(content: bytes | None, settings: Settings) -> str:
    """Why a picture cannot be used, as one of PICTURE_FAULTS; empty where it can, or lies elsewhere."""
    if content is None:
        return ""
    try:
        decode(content, _SHORTER_SIDE, settings.pictures.max_pixels)
    except UnusablePicture as fault:
        return fault.reason
    return ""
