"""What `doctor` can say of pictures: whether model and head open, and whether pictures that lie in the table decode."""

from __future__ import annotations

from collections.abc import Iterator

from itemsage_model.encoders.model_files import CheckpointError, load_model
from itemsage_model.encoders.picture_tower import PictureTowerSpec
from itemsage_model.encoders.pictures.decoding import decode
from itemsage_model.encoders.pictures.stored import open_encoder
from pipeline.findings import Finding
from schemas.errors import InputError, SettingsError
from schemas.picture_tables import UnusablePicture
from schemas.records import read_record
from schemas.settings import Settings
from schemas.stages import TRAIN_PICTURES

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
    if settings.pictures.head:
        yield _head_finding(settings, encoder.name)


def _head_finding(settings: Settings, base: str) -> Finding:
    """Whether there is a head for this encoder, as `embed_images` will ask."""
    try:
        trained = read_record(settings.layout, TRAIN_PICTURES).metrics
        head = load_model(trained.model_uri, PictureTowerSpec)
    except (InputError, CheckpointError) as error:
        return Finding("fault", "picture head", f"{error} Or leave pictures.head false.")
    if head.spec.base != base:
        return Finding("fault", "picture head", f"{head.model_id} was trained on {head.spec.base}, not on {base}")
    return Finding("ok", "picture head", f"{head.model_id}, of {trained.steps} steps")


def picture_fault(content: bytes | None, settings: Settings) -> str:
    """Why a picture cannot be used, as one of PICTURE_FAULTS; empty where it can, or lies elsewhere."""
    if content is None:
        return ""
    try:
        decode(content, _SHORTER_SIDE, settings.pictures.max_pixels)
    except UnusablePicture as fault:
        return fault.reason
    return ""
