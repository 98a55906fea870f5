"""The tables of pictures: those of jobs/embed_images.py, and of the head; and why a picture cannot be used."""

from __future__ import annotations

from dataclasses import replace

from schemas.columns import Column, Table
from schemas.elements import IMAGES
from schemas.graph_tables import GRAPH_PAIRS
from schemas.tables import ITEM_FEATURES, ITEM_IMAGES, ITEMS, REJECTED_ITEMS, ROW_CHECKSUM


class UnusablePicture(Exception):  # noqa: N818 (a finding about a row, not an error of ours)
    """A picture that cannot be used.

    Args:
        reason: One of PICTURE_FAULTS.
        found: What was found, in words.
    """

    def __init__(self, reason: str, found: str = "") -> None:
        self.reason, self.found = reason, found
        super().__init__(f"{reason}: {found}" if found else reason)


_AGAIN = "Export the picture again from its original."
_AS_PICTURE = "Save it as JPEG, PNG, WebP, AVIF or GIF."
_LATER = "Run again when the store answers, or raise pictures.timeout_seconds or pictures.budget_seconds."

PICTURE_FAULTS: dict[str, tuple[str, str]] = {
    "place_not_allowed": (
        "a place below one of pictures.roots", "Name the place in pictures.roots, or give the picture's bytes.",
    ),
    "internal_address": (
        "a host on the public internet", "Give the picture's bytes, or a path or a bucket instead of a host inside.",
    ),
    "not_found": ("a file that is there", "Correct picture_uri, or drop the row."),
    "not_fetched": ("a file that can be read", "Look at `found`; correct picture_uri, or the rights to read it."),
    "too_slow": ("bytes within pictures.timeout_seconds", _LATER),
    "budget_spent": ("reading within pictures.budget_seconds a task", _LATER),
    "too_many_bytes": ("at most pictures.max_bytes bytes", "Give a smaller picture, or raise pictures.max_bytes."),
    "empty": ("a picture", "The file has no byte: write it again."),
    "html": ("a picture", "The link leads to a web page: link to the picture itself."),
    "svg": ("a picture of pixels", "Draw it as PNG: what draws SVG would open what it links to."),
    "refused_format": ("JPEG, PNG, WebP, AVIF or GIF", _AS_PICTURE),
    "unknown_format": ("JPEG, PNG, WebP, AVIF or GIF", _AS_PICTURE),
    "broken_header": ("a header with format and size", _AGAIN),
    "too_many_pixels": (
        "at most pictures.max_pixels pixels, by its header", "Give a smaller picture, or raise pictures.max_pixels.",
    ),
    "too_narrow": ("a picture at most 50 times as long as wide", "Give a picture of the product, not of a line."),
    "truncated": ("the whole file", f"The file ends too early. {_AGAIN}"),
    "broken_pixels": ("pixels that can be decoded", _AGAIN),
    "no_vector": ("a picture of which the encoder makes a vector", "Give another picture."),
    "changed_while_read": ("one picture while the job runs", "Run again when nobody writes pictures any more."),
}  # fmt: skip
"""Reason -> what was expected, and the cure."""

PICTURE_HASH = "picture_hash"
_PICTURE_HASH = Column(PICTURE_HASH, "string", "sha256 of the picture's bytes, hexadecimal")

ITEM_PICTURES = Table(
    "item_pictures",
    "one picture of one product: its bytes, or where they lie",
    (
        ITEMS.column("item_id"),
        ITEM_IMAGES.column("position"),
        Column(
            "picture", "binary", "bytes of a JPEG, PNG, WebP, AVIF or GIF; null = picture_uri says where they lie",
            nullable=True, optional=True,
        ),
        Column(
            "picture_uri", "string",
            "absolute path or URI of the file, below one of pictures.roots; null = the bytes are in picture",
            nullable=True, optional=True,
        ),
    ),
    key=("item_id", "position"),
)  # fmt: skip

PICTURE_EMBEDDINGS = Table(
    "picture_embeddings",
    "one distinct picture: its frozen embedding, or why it has none; kept from run to run",
    (
        _PICTURE_HASH,
        Column("image_embedding", "vector", "as in item_images, unit length; null = there is none", nullable=True),
        Column("fault", "string", "why there is none, as the reason in rejected_pictures", nullable=True),
        Column("found", "string", "what was found, in words", nullable=True),
        Column("made_by", "string", "hash of encoder, limits and code: rows of another one are made anew"),
    ),
    key=(PICTURE_HASH,),
)

REJECTED_PICTURES = Table(
    "rejected_pictures",
    "one row of item_pictures that cannot be used, and why",
    (
        Column("item_id", "string", "the item", nullable=True),
        Column("position", "int32", "as in item_pictures", nullable=True),
        Column("picture_uri", "string", "as in item_pictures", nullable=True),
        Column("found", "string", "what was found, in words", nullable=True),
        *(column for column in REJECTED_ITEMS.columns if column.name != "item_id"),
    ),
)

ITEM_PICTURE_HASHES = Table(
    "item_picture_hashes",
    "one picture of one product that item_images has, by the hash of its bytes",
    (*ITEM_IMAGES.columns[:2], _PICTURE_HASH),
    key=ITEM_IMAGES.key,
)
"""Which row of picture_embeddings, the base, a row of item_images is made of, whatever a head has made of it."""

_CHECKED_FEATURES = ("item_id", "item_key", IMAGES.values.name)

PICTURE_FEATURES = Table(
    "picture_features",
    "one product with pictures, as the head reads it: the base's vectors of its first model.max_images pictures",
    (
        ITEM_FEATURES.column("item_id"),
        ITEM_FEATURES.column("item_key"),
        replace(IMAGES.values, doc="little-endian float16 vectors of the frozen encoder, by position; at least one"),
        replace(
            ITEM_FEATURES.column(ROW_CHECKSUM),
            doc=f"CRC-32 of {', '.join(_CHECKED_FEATURES)}; see schemas/checksums.py",
        ),
    ),
    key=("item_id",),
    checksummed=_CHECKED_FEATURES,
)

PICTURE_PAIRS = replace(
    GRAPH_PAIRS,
    name="picture_pairs",
    one_row_is="one product with pictures engaged from one query before the validation window, with another such "
    "product drawn from those of the same query",
)

VALIDATION_PICTURE_PAIRS = replace(
    GRAPH_PAIRS,
    name="picture_pairs_validation",
    one_row_is="the same as in picture_pairs, by the events of the validation window alone",
)
