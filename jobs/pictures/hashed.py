"""Pictures of items, each known by the hash of its bytes: what is equal has one hash, wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.runtime.picture_files import AT_ONCE, PictureFiles
from jobs.transforms.quarantine import Check, copy_checks, is_blank, text_checks, with_copies, with_reject
from schemas.columns import Table
from schemas.picture_tables import ITEM_PICTURES, PICTURE_EMBEDDINGS, PICTURE_FAULTS, PICTURE_HASH, UnusablePicture
from schemas.settings import PictureSettings

_PLACES = Table(
    "item_pictures",
    "one picture of one product, known by its hash",
    (*ITEM_PICTURES.columns[:2], PICTURE_EMBEDDINGS.column(PICTURE_HASH)),
    key=ITEM_PICTURES.key,
)
"""What of ITEM_PICTURES tells its copies apart."""

_HASHED = "item_id string, position int, picture_uri string, picture_hash string, fault string, found string"


def hashed_pictures(pictures: DataFrame, settings: PictureSettings) -> DataFrame:
    """The pictures without their bytes: `picture_hash`, and `reject` where a row cannot be used.

    Args:
        pictures: Rows of ITEM_PICTURES.
        settings: What may be read, and how large it may be.
    """
    checked = with_reject(pictures, ITEM_PICTURES, _row_checks(settings))
    own_hash = F.when(F.col("picture").isNotNull(), F.sha2("picture", 256))
    no_text = F.lit(None).cast("string")
    named = checked.withColumns({PICTURE_HASH: own_hash, "fault": no_text, "found": no_text}).drop("picture")
    is_elsewhere = F.col("reject").isNull() & F.col(PICTURE_HASH).isNull()
    elsewhere = named.where(is_elsewhere).select(*pictures.drop("picture").columns)
    read = elsewhere.mapInArrow(_reader(settings), _HASHED)
    # What was read is judged by what was found, and gets the column that the others have already.
    whole = named.where(~is_elsewhere).unionByName(with_verdicts(read))
    unique = with_copies(whole, _PLACES, _PLACES.key, ("picture_uri",))
    cure = "Number the item's pictures from 0; the smallest by hash was used."
    judged = with_reject(unique, ITEM_PICTURES, copy_checks("picture", "position", cure))
    return judged.drop("copy", "is_repeat")


def with_verdicts(pictures: DataFrame) -> DataFrame:
    """Add `reject` to pictures whose column `fault` names one of PICTURE_FAULTS."""
    column = F.when(F.col("picture_uri").isNull(), "picture").otherwise("picture_uri")
    checks = [
        Check(reason, F.col("fault") == reason, "picture", expected, cure)
        for reason, (expected, cure) in PICTURE_FAULTS.items()
    ]
    judged = with_reject(pictures, ITEM_PICTURES, checks)
    named = F.when(F.col("reject").isNotNull(), F.col("reject").withField("source_column", column))
    return judged.withColumn("reject", named)


def _row_checks(settings: PictureSettings) -> list[Check]:
    both = F.col("picture").isNotNull() & F.col("picture_uri").isNotNull()
    neither = F.col("picture").isNull() & is_blank("picture_uri")
    expected, cure = PICTURE_FAULTS["too_many_bytes"]
    is_large = F.octet_length("picture") > settings.max_bytes
    return [
        Check("null_id", is_blank("item_id"), "item_id", "the id of an item", "Name the item that the picture shows."),
        *text_checks(ITEM_PICTURES),
        Check(
            "null_position", F.col("position").isNull(), "position", "a number of 32 bits",
            "Number the item's pictures from 0.",
        ),
        Check("no_picture", neither, "picture", "bytes, or the URI of a file", "Give one of the two, or drop the row."),
        Check("two_pictures", both, "picture_uri", "bytes or a URI, not both", "Leave one of the two null."),
        Check("too_many_bytes", is_large, "picture", expected, cure),
    ]  # fmt: skip


def _reader(settings: PictureSettings) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Reads the pictures that lie elsewhere, and keeps their hashes alone."""

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        files = PictureFiles(settings)
        for batch in batches:
            for first in range(0, len(batch), AT_ONCE):
                some = batch.slice(first, AT_ONCE)
                said = [_said(found) for found in files.read(some.column("picture_uri").to_pylist())]
                texts = [pa.array(column, pa.string()) for column in zip(*said, strict=True)]
                names = ["item_id", "position", "picture_uri"]
                columns = [*some.select(names).columns, *texts]
                yield pa.RecordBatch.from_arrays(columns, [*names, PICTURE_HASH, "fault", "found"])

    return read


def _said(found: bytes | UnusablePicture) -> tuple[str | None, str | None, str | None]:
    """Hash, reason and finding of what was read."""
    if isinstance(found, bytes):
        return hashlib.sha256(found).hexdigest(), None, None
    return None, found.reason, found.found or None
