"""Give every picture of an item its frozen embedding, by a vision model in a local folder, and a head on top of it.

Reads: item_pictures; the model's folder (pictures.folder); the files that picture_uri names, below pictures.roots;
where pictures.head says so, the head that train_pictures has trained.
Writes: item_images, item_picture_hashes, picture_embeddings, rejected_pictures.
One row of item_images is one picture of one item, of item_picture_hashes the same picture by the hash of its bytes, of
picture_embeddings one distinct picture with its frozen vector, which no head changes; of rejected_pictures one row of
item_pictures that cannot be used, and why.
Safe to rerun because: what a row holds follows from the picture's bytes and the model alone, so that rows of former
runs, and of one that ended early, stay: a distinct picture is decoded and encoded once. They are committed in rounds;
item_images and rejected_pictures are replaced in one commit each.

    spark-submit --properties-file spark-defaults.conf jobs/embed_images.py --settings pipeline.toml
"""

from __future__ import annotations

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from itemsage_model.encoders.model_folder import folder_sha256
from itemsage_model.encoders.pictures.picture_encoder import PictureEncoder
from itemsage_model.encoders.pictures.stored import open_encoder
from jobs.pictures.hashed import hashed_pictures, with_verdicts
from jobs.pictures.head import head_of, with_head
from jobs.pictures.made import embedded_pictures
from jobs.runtime import command_line, table_io
from jobs.runtime.incremental import maker
from jobs.runtime.job_run import JobRun
from jobs.runtime.rejects import require_few_rejects
from jobs.transforms.quarantine import accepted, rejected
from schemas.commits import writer_of
from schemas.errors import InputError, SettingsError
from schemas.metrics import PictureMetrics
from schemas.picture_tables import (
    ITEM_PICTURE_HASHES,
    ITEM_PICTURES,
    PICTURE_EMBEDDINGS,
    PICTURE_HASH,
    REJECTED_PICTURES,
)
from schemas.records import TableVersion
from schemas.settings import Settings
from schemas.spark import struct_type
from schemas.stages import EMBED_IMAGES
from schemas.tables import ITEM_IMAGES

STAGE = EMBED_IMAGES

_MOST_ROUNDS = 8
"""Commits of one run at most: each reads all of item_pictures once more, for a hundredth of what encoding it costs."""

_PICTURES_PER_PART = 256
"""Pictures, about, that one task encodes: some seconds of work."""

_MOST_UNUSED = 0.5
"""Where more than this share of the stored rows is of pictures that no item has any more, they are left out."""


def build(hashed: DataFrame, stored: DataFrame) -> tuple[DataFrame, DataFrame]:
    """Give every picture of an item what is stored of it.

    Args:
        hashed: Rows of `hashed_pictures`.
        stored: Rows of PICTURE_EMBEDDINGS, unique by picture_hash: the join neither multiplies nor drops pictures.

    Returns:
        Rows of ITEM_IMAGES with their picture_hash, and of REJECTED_PICTURES.
    """
    known = stored.select(PICTURE_HASH, "image_embedding", "fault", "found", F.lit(True).alias("is_stored"))
    # A picture that came to be another one while the job ran has no row.
    changed = F.when(F.col("is_stored").isNull(), F.lit("changed_while_read"))
    whole = accepted(hashed).drop("fault", "found").join(known, on=PICTURE_HASH, how="left")
    judged = with_verdicts(whole.withColumn("fault", F.coalesce("fault", changed)))
    images = accepted(judged).select(*ITEM_IMAGES.column_names, PICTURE_HASH)
    parts = [rejected(rows, REJECTED_PICTURES) for rows in (hashed, judged)]
    return images, parts[0].unionByName(parts[1])


def run(spark: SparkSession, settings: Settings) -> None:
    """Open the encoder, read the pictures, make the embeddings that are missing, write."""
    with JobRun(spark, settings, STAGE) as job:
        encoder, sha256 = _open(settings), folder_sha256(settings.pictures.folder)
        _require_own_table(settings)
        pictures = job.read(ITEM_PICTURES)
        hashed = hashed_pictures(pictures, settings.pictures).persist(StorageLevel.MEMORY_AND_DISK)
        made_by = maker(encoder.name, str(settings.pictures.max_pixels), str(settings.pictures.max_bytes))
        needed = accepted(hashed).select(PICTURE_HASH).distinct().persist(StorageLevel.MEMORY_AND_DISK)
        head = head_of(job, encoder)
        metrics = _complete(job, pictures, hashed, needed, made_by, sha256)
        images, rejects = build(hashed, _stored(job))
        job.write_rejected(rejects, REJECTED_PICTURES)
        require_few_rejects(job, ITEM_PICTURES, REJECTED_PICTURES, harmless=["duplicate_picture"])
        # Not before: where a store does not answer no picture is needed, and all would be made anew the next day.
        _forget_unused(job, needed, metrics["pictures"])
        job.write(images.select(*ITEM_PICTURE_HASHES.column_names), ITEM_PICTURE_HASHES)
        own = images.select(*ITEM_IMAGES.column_names)
        job.write(own if head is None else with_head(own, head), ITEM_IMAGES)
        space = encoder.name if head is None else f"{encoder.name}+{head.model_id[:8]}"
        job.metrics = PictureMetrics(space, encoder.length, **metrics, made_by=made_by, base=encoder.name)
        needed.unpersist()
        hashed.unpersist()


def _open(settings: Settings) -> PictureEncoder:
    """The encoder.

    Raises:
        SettingsError: there is none, or model.image_length is not the length of its vectors.
    """
    if not settings.pictures.folder:
        raise SettingsError("pictures.folder: embed_images needs a folder with a vision model (docs/pictures.md)")
    encoder = open_encoder(settings.pictures.folder)
    if encoder.length != settings.model.image_length:
        raise SettingsError(
            f"model.image_length = {settings.model.image_length}, and {encoder.name} makes vectors of {encoder.length} "
            f"numbers: set model.image_length = {encoder.length}"
        )
    print(f"  pictures are encoded by {encoder.name}, {encoder.length} numbers each", flush=True)
    return encoder


def _require_own_table(settings: Settings) -> None:
    """Refuse to replace a table item_images that the shop has put into the warehouse.

    Raises:
        InputError: there is one.
    """
    uri = settings.table_uri(ITEM_IMAGES.name)
    if writer_of(uri) not in (None, STAGE.name):
        raise InputError(
            f"table {ITEM_IMAGES.name}",
            "",
            expected=f"none at {uri}, or one that {STAGE.name} wrote",
            found="one of somebody else's",
            cure="Move it away; or take pictures.folder out, and it is read as it is.",
        )


def _complete(
    job: JobRun[PictureMetrics], pictures: DataFrame, hashed: DataFrame, needed: DataFrame, made_by: str, sha256: str
) -> dict[str, int]:
    """Make the rows of PICTURE_EMBEDDINGS that are missing, and commit them round by round.

    Args:
        job: The run.
        pictures: Rows of ITEM_PICTURES.
        hashed: Rows of `hashed_pictures`.
        needed: The hash of each distinct picture.
        made_by: See PICTURE_EMBEDDINGS.
        sha256: Of the model's folder.

    Returns:
        The counts of PictureMetrics.
    """
    uri, settings = job.settings.table_uri(PICTURE_EMBEDDINGS.name), job.settings.pictures
    is_there = table_io.latest_version(job.spark, uri) is not None
    kept = 0
    missing = needed
    if is_there and not job.settings.rerun:
        stored = table_io.read(job.spark, uri, PICTURE_EMBEDDINGS, version=table_io.latest_version(job.spark, uri))
        usable = stored.where(F.col("made_by") == made_by)
        missing = needed.join(usable, on=PICTURE_HASH, how="left_anti")
        kept = usable.count()
    missing = missing.persist(StorageLevel.MEMORY_AND_DISK)
    count, total = missing.count(), needed.count()
    if kept or total:
        print(f"  of {total:,} distinct pictures: {count:,} to make; the others stay as they are", flush=True)
    rounds = min(_MOST_ROUNDS, -(-count // settings.commit_every))
    for number in range(rounds):
        chosen = missing.where(F.pmod(F.xxhash64(PICTURE_HASH), F.lit(rounds)) == number)
        parts = 1 + count // rounds // _PICTURES_PER_PART
        rows = embedded_pictures(pictures, hashed, chosen, settings, (made_by, sha256), parts)
        staged = job.stage_worker_rows(rows, PICTURE_EMBEDDINGS)
        # The first rows of another encoder take the place of all others'.
        version = staged.append(job.note()) if kept else staged.commit(job.note())
        kept += staged.rows
        print(f"  {staged.rows:,} pictures made, version {version} of {PICTURE_EMBEDDINGS.name}", flush=True)
    missing.unpersist()
    return {"pictures": total, "pictures_encoded": count, "rounds": rounds, "kept_rows": total - count}


def _stored(job: JobRun[PictureMetrics]) -> DataFrame:
    """The rows of PICTURE_EMBEDDINGS; none where no picture could ever be used."""
    uri = job.settings.table_uri(PICTURE_EMBEDDINGS.name)
    version = table_io.latest_version(job.spark, uri)
    if version is None:
        return job.spark.createDataFrame([], struct_type(PICTURE_EMBEDDINGS))
    return table_io.read(job.spark, uri, PICTURE_EMBEDDINGS, version=version)


def _forget_unused(job: JobRun[PictureMetrics], needed: DataFrame, total: int) -> None:
    """Count the rows of PICTURE_EMBEDDINGS; write them anew where too many are of pictures that no item has any more.

    Args:
        job: The run.
        needed: The hash of each distinct picture.
        total: How many these are.
    """
    stored, uri = _stored(job), job.settings.table_uri(PICTURE_EMBEDDINGS.name)
    kept = stored.count()
    if kept - total > _MOST_UNUSED * kept:
        job.write(stored.join(needed, on=PICTURE_HASH, how="left_semi"), PICTURE_EMBEDDINGS)
    else:
        version = table_io.latest_version(job.spark, uri)
        job.count_output(TableVersion(PICTURE_EMBEDDINGS.name, uri, version, kept))


def main() -> None:
    """Run the job from its command line."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
