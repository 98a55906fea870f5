"""Distinct pictures, decoded and encoded in Python workers: rows of PICTURE_EMBEDDINGS."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from itemsage_model.encoders.pictures.picture_encoder import BATCH, PictureEncoder
from itemsage_model.encoders.pictures.preprocessing import Pixels
from itemsage_model.encoders.pictures.stored import open_encoder
from jobs.runtime.picture_files import PictureFiles
from jobs.runtime.worker_rows import WorkerRows
from jobs.transforms.quarantine import accepted
from schemas.arrow import arrow_schema
from schemas.picture_tables import PICTURE_EMBEDDINGS, PICTURE_HASH, UnusablePicture
from schemas.settings import PictureSettings


def embedded_pictures(
    pictures: DataFrame,
    hashed: DataFrame,
    chosen: DataFrame,
    settings: PictureSettings,
    made_by: tuple[str, str],
    part_count: int,
) -> WorkerRows:
    """Rows of PICTURE_EMBEDDINGS, one for each chosen picture that still is what it was when it was hashed.

    Args:
        pictures: Rows of ITEM_PICTURES.
        hashed: Rows of `hashed_pictures`.
        chosen: The hash of each picture to make, unique: the joins drop pictures, and do not multiply them.
        settings: The encoder's folder and the limits.
        made_by: As in PICTURE_EMBEDDINGS; and the sha256 of the encoder's folder, which each worker compares.
        part_count: Number of parts, of as many tasks.
    """
    here = pictures.where(F.col("picture").isNotNull())
    own = here.select(F.sha2("picture", 256).alias(PICTURE_HASH), "picture", F.lit(None).cast("string").alias("uri"))
    named = accepted(hashed).where(F.col("picture_uri").isNotNull())
    elsewhere = named.select(
        PICTURE_HASH, F.lit(None).cast("binary").alias("picture"), F.col("picture_uri").alias("uri")
    )
    wanted = own.unionByName(elsewhere).join(chosen, on=PICTURE_HASH, how="left_semi")
    maker, sha256 = made_by

    def embed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        encoder, files = open_encoder(settings.folder, sha256), PictureFiles(settings)
        seen: set[str] = set()
        for batch in batches:
            for first in range(0, len(batch), BATCH):
                rows = distinct(batch.slice(first, BATCH), seen, files)
                yield embedded(rows, encoder, settings.max_pixels, maker)
                seen.update(rows)

    # Equal pictures meet in one part.
    return WorkerRows(wanted.repartition(part_count, PICTURE_HASH), embed)


def distinct(batch: pa.RecordBatch, seen: set[str], files: PictureFiles) -> dict[str, bytes]:
    """Hash -> bytes of the pictures of a batch that have not been seen, and still are what they were.

    Args:
        batch: picture_hash, and picture or uri.
        seen: Hashes of pictures that are done.
        files: What reads those that lie elsewhere.
    """
    new = [row for row in batch.to_pylist() if row[PICTURE_HASH] not in seen]
    elsewhere = [row for row in new if row["picture"] is None]
    for row, content in zip(elsewhere, files.read([row["uri"] for row in elsewhere]), strict=True):
        row["picture"] = content
    return {
        row[PICTURE_HASH]: row["picture"]
        for row in new
        if isinstance(row["picture"], bytes) and hashlib.sha256(row["picture"]).hexdigest() == row[PICTURE_HASH]
    }


def embedded(contents: dict[str, bytes], encoder: PictureEncoder, max_pixels: int, made_by: str) -> pa.RecordBatch:
    """Rows of PICTURE_EMBEDDINGS.

    Args:
        contents: Hash -> bytes.
        encoder: The encoder.
        max_pixels: Most pixels of a picture.
        made_by: As in PICTURE_EMBEDDINGS.
    """
    pixels: dict[str, Pixels] = {}
    faults: dict[str, UnusablePicture] = {}
    for name, content in contents.items():
        try:
            pixels[name] = encoder.preprocessing(content, max_pixels)
        except UnusablePicture as fault:
            faults[name] = fault
    vectors = dict(zip(pixels, encoder.encode(list(pixels.values())), strict=True))
    faults |= {name: UnusablePicture("no_vector") for name, vector in vectors.items() if not vector.any()}
    rows = [
        {
            PICTURE_HASH: name,
            "image_embedding": None if name in faults else vectors[name],
            "fault": faults[name].reason if name in faults else None,
            "found": faults[name].found or None if name in faults else None,
            "made_by": made_by,
        }
        for name in contents
    ]
    return pa.RecordBatch.from_pylist(rows, arrow_schema(PICTURE_EMBEDDINGS))
