"""Cut the pairs of products engaged from one query, and their pictures' vectors, on which the head is trained.

Reads:  engagement_logs, query_embeddings, items, item_picture_hashes, picture_embeddings
Writes: picture_features, picture_pairs, picture_pairs_validation
One row of picture_features is one usable product that has pictures; one of picture_pairs is one such product that was
engaged from one query before the validation window, with another one drawn from the same query; one of
picture_pairs_validation is the same of the validation window. The held-out window is not read; nothing of the
validation window is in picture_pairs.
The vectors are those of the frozen encoder, whatever head item_images has: a head never learns from another.
Safe to rerun because every draw is a hash of (seed, query, item), and every table is replaced in one commit.

    spark-submit --properties-file spark-defaults.conf jobs/build_picture_pairs.py --settings pipeline.toml
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.runtime import command_line
from jobs.runtime.job_run import JobRun
from jobs.runtime.worker_rows import WorkerRows
from jobs.transforms.engagements import TRAINING, checked_engagements
from jobs.transforms.graph_edges import UNIT, alias_rows, capped, graph_edges, reference_time
from jobs.transforms.graph_walks import drawn_pairs
from jobs.transforms.hot_keys import hot_keys
from jobs.transforms.item_images import images_by_item, packed_images, split_images
from jobs.transforms.items import split_items
from jobs.transforms.keys import item_key
from jobs.transforms.quarantine import accepted
from schemas.contracts import run_again
from schemas.elements import IMAGES
from schemas.errors import InputError, TableError
from schemas.metrics import PicturePairMetrics
from schemas.picture_tables import (
    ITEM_PICTURE_HASHES,
    PICTURE_EMBEDDINGS,
    PICTURE_FEATURES,
    PICTURE_HASH,
    PICTURE_PAIRS,
    VALIDATION_PICTURE_PAIRS,
)
from schemas.settings import Settings
from schemas.stages import BUILD_PICTURE_PAIRS, EMBED_IMAGES
from schemas.tables import ENGAGEMENT_LOGS, ITEMS, QUERY_EMBEDDINGS

STAGE = BUILD_PICTURE_PAIRS

_KEYS = ("query_id", "item_id")


def build_features(pictures: DataFrame, vectors: DataFrame, items: DataFrame, settings: Settings) -> DataFrame:
    """item_id, item_key and `images`, the base's vectors as cells, of each usable product that has pictures.

    Args:
        pictures: Rows of ITEM_PICTURE_HASHES.
        vectors: Rows of PICTURE_EMBEDDINGS, unique by picture_hash: the join neither multiplies nor drops pictures.
        items: The usable items, unique by item_id.
        settings: Length and most images of an item.
    """
    length, most = settings.model.image_length, settings.model.max_images
    base = pictures.join(vectors.select(PICTURE_HASH, "image_embedding"), on=PICTURE_HASH, how="inner")
    packed = packed_images(base.select("item_id", "position", "image_embedding"), length)
    usable, _ = split_images(packed, items, length)
    by_item = images_by_item(usable, most)
    return by_item.select("item_id", item_key("item_id").alias("item_key"), "images")


def build_feature_rows(features: DataFrame) -> WorkerRows:
    """Rows of PICTURE_FEATURES, of those of `build_features`."""

    def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            cells = pa.array([b"".join(images) for images in batch.column("images").to_pylist()], pa.binary())
            columns = [batch.column("item_id"), batch.column("item_key"), cells]
            yield pa.RecordBatch.from_arrays(columns, ["item_id", "item_key", IMAGES.values.name])

    return WorkerRows(features.sortWithinPartitions("item_id"), pack)


def build_pairs(events: DataFrame, pictured: DataFrame, settings: Settings) -> WorkerRows:
    """Pairs of products engaged from one query, in an order that looks random; see `drawn_pairs`.

    A query that shows a product has that product as a member, too. Each event weighs by its age, as in training.

    Args:
        events: Accepted events of one window.
        pictured: item_key of the products with pictures, unique: the joins drop members, and do not multiply them.
        settings: The caps, the seed, and what an event weighs.
    """
    half_life, own = settings.half_life_days, settings.picture_head
    reference = reference_time(settings.dates.train_end, half_life)
    edges = graph_edges(events, pictured, join_by="query", reference=reference, half_life_days=half_life)
    known = edges.join(pictured, on="item_key", how="left_semi")
    kept = capped(known, max_groups=own.max_queries, max_items=own.max_items).persist(StorageLevel.MEMORY_AND_DISK)
    pairs = drawn_pairs(kept, alias_rows(kept, node="group", other="item"), seed=own.seed)
    weighted = pairs.withColumn("pair_weight", (F.col("weight") / UNIT).cast("float")).drop("weight")
    return WorkerRows(
        weighted.sortWithinPartitions(F.xxhash64("query_item_key", "item_key"), "query_item_key", "item_key"), iter
    )


def run(spark: SparkSession, settings: Settings) -> None:
    """Read log, items and pictures; write features and pairs."""
    with JobRun(spark, settings, STAGE) as job:
        base = _base(job)
        items = split_items(job.read(ITEMS))[0].persist(StorageLevel.MEMORY_AND_DISK)
        known = items.select("item_id", item_key("item_id").alias("item_key"))
        pictures, vectors = job.read(ITEM_PICTURE_HASHES), job.read(PICTURE_EMBEDDINGS)
        features = build_features(pictures, vectors, items, settings).persist(StorageLevel.MEMORY_AND_DISK)
        events = _events(job, known).persist(StorageLevel.MEMORY_AND_DISK)
        written = job.write_worker_rows(build_feature_rows(features), PICTURE_FEATURES)
        pictured, counts = features.select("item_key"), []
        start = F.lit(settings.dates.validation_start)
        for table, part in (
            (PICTURE_PAIRS, events.where(F.col("event_ts") < start)),
            (VALIDATION_PICTURE_PAIRS, events.where(F.col("event_ts") >= start)),
        ):
            counts.append(job.write_worker_rows(build_pairs(part, pictured, settings), table).rows)
        _require_pairs(job, counts[0], written.rows)
        job.metrics = PicturePairMetrics(base, settings.model.image_length, written.rows, *counts)
        for cached in (features, events, items):
            cached.unpersist()


def _base(job: JobRun[PicturePairMetrics]) -> str:
    """The frozen encoder of picture_embeddings.

    Raises:
        InputError: embed_images has not run, or was of a version that did not keep hashes.
    """
    record = job.record(EMBED_IMAGES)
    if record.metrics.base:
        return record.metrics.base
    expected, found = f"one that has written {ITEM_PICTURE_HASHES.name}", "one of before there was a head"
    where = (f"run record of {EMBED_IMAGES.name}", "base")
    raise InputError(*where, expected=expected, found=found, cure=run_again([EMBED_IMAGES.name]))


def _events(job: JobRun[PicturePairMetrics], known: DataFrame) -> DataFrame:
    """The accepted events of the training window; build_training_tables says which are rejected, and why."""
    logs, queries = job.read(ENGAGEMENT_LOGS), job.read(QUERY_EMBEDDINGS)
    hot = hot_keys(logs, _KEYS, row_count=job.row_count(ENGAGEMENT_LOGS))
    checked = checked_engagements(logs, queries, known, settings=job.settings, hot=hot)
    return accepted(checked).where(F.col("window") == TRAINING)


def _require_pairs(job: JobRun[PicturePairMetrics], pairs: int, items: int) -> None:
    if not pairs:
        raise TableError(
            ENGAGEMENT_LOGS.name,
            "(all)",
            expected=f"two products with pictures engaged from one query before {job.settings.dates.validation_start}",
            found=f"none among {items:,} products with pictures",
            cure="Raise dates.train_days, or do without a head: leave pictures.head false.",
        )


def main() -> None:
    """Run the job from its command line."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
