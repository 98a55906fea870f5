"""Write the input tables of a small synthetic shop with planted structure, and the truth behind it.

Reads:  nothing; size and seed, tasks and log window come from the settings
Writes: items, item_images, queries, engagement_logs (with demo_world.pictures, item_pictures instead of item_images,
and no embeddings in queries); for the oracle true_item_vectors and true_query_vectors
One row is what schemas/tables.py says, table by table.
Safe to rerun because every row follows from the settings, and each table is replaced in one commit.

    spark-submit --properties-file spark-defaults.conf jobs/make_demo_world.py --settings demo.toml

An event's item is drawn with probability proportional to exp(true query vector . true item vector), which includes
popularity and the engagement's taste: ranking by that product is the best that any model can do. Of the log rows, 1%
are repeated deliveries, and 1% are late, in the future, or name an unknown item or query.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

from jobs.demo_world.engagements import engagement_taste, make_log
from jobs.demo_world.pictures import make_pictures
from jobs.demo_world.shop import Items, Queries, Shop, generator, make_images, make_shop
from jobs.demo_world.words import item_texts
from jobs.runtime import command_line
from jobs.runtime.job_run import JobRun, side_by_side
from schemas.cells import to_list_column
from schemas.columns import Table
from schemas.metrics import NoMetrics
from schemas.picture_tables import ITEM_PICTURES
from schemas.settings import DemoWorldSettings, Settings
from schemas.stages import MAKE_DEMO_WORLD
from schemas.tables import (
    ENGAGEMENT_LOGS,
    ITEM_IMAGES,
    ITEMS,
    QUERIES,
    TEXT_FEATURES,
    TRUE_ITEM_VECTORS,
    TRUE_QUERY_VECTORS,
)

STAGE = MAKE_DEMO_WORLD

_EVENTS_PER_SEARCH_QUERY, _EVENTS_PER_IMAGE_QUERY = 20, 10
# A cap keeps the work linear in the number of items.
_MAX_QUERIES = 20_000


def build(settings: Settings) -> dict[Table, pa.Table]:
    """Make the world that the settings describe.

    A query kind named `search` types texts; every other kind views images. Of a kind's engagements the one named first
    is the most frequent.
    """
    size = settings.demo_world
    engagements: dict[str, list[str]] = {}
    for entry in settings.tasks:
        engagements.setdefault(entry.query_kind, []).append(entry.engagement)
    per_query = {
        kind: _EVENTS_PER_SEARCH_QUERY if kind == "search" else _EVENTS_PER_IMAGE_QUERY for kind in engagements
    }
    counts = {kind: min(size.events // len(engagements) // n, _MAX_QUERIES) for kind, n in per_query.items()}
    shop = make_shop(size.seed, size.items, counts, has_pictures=size.pictures)
    log = make_log(shop, engagements, settings.dates, size.events)
    return {
        ITEMS: _items_table(shop.items, size.seed),
        **_shown(shop.items, size),
        QUERIES: _queries_table(shop, has_embeddings=not size.pictures),
        ENGAGEMENT_LOGS: pa.table(
            {
                "event_id": [f"event-{number:08d}" for number in log["event"]],
                "event_ts": pa.array(log["event_ts"], pa.timestamp("us", tz="UTC")),
                "user_id": pa.array([f"user-{n:05d}" if n >= 0 else None for n in log["user"]], pa.string()),
                **{name: log[name] for name in ("query_id", "item_id", "engagement")},
            }
        ),
        TRUE_ITEM_VECTORS: pa.table(
            {"item_id": shop.items.ids, "true_vector": to_list_column(shop.items.true_vectors)}
        ),
        TRUE_QUERY_VECTORS: _true_queries_table(shop, engagements),
    }


def run(spark: SparkSession, settings: Settings) -> None:
    """Write the world."""
    with JobRun(spark, settings, STAGE) as job:
        world = build(settings)
        # A file per core, so that the jobs which read them have a task per core.
        files = spark.sparkContext.defaultParallelism
        side_by_side([partial(job.write_arrow, rows, table, files) for table, rows in world.items()])
        job.metrics = NoMetrics()


def _items_table(items: Items, seed: int) -> pa.Table:
    rng = generator(seed, "texts")
    texts = [item_texts(attributes, rng) for attributes in items.attributes]
    columns = {
        name: pa.array([text.get(name) for text in texts], pa.list_(pa.string()) if many else pa.string())
        for name, many in TEXT_FEATURES.items()
    }
    return pa.table({"item_id": items.ids, **columns})


def _shown(items: Items, size: DemoWorldSettings) -> dict[Table, pa.Table]:
    """Vectors of images; or pictures, of which embed_images makes vectors."""
    if not size.pictures:
        return {ITEM_IMAGES: _images_table(items, size.seed)}
    item, position, drawn = make_pictures(items, size.seed)
    columns = {"item_id": np.array(items.ids)[item], "position": position.astype(np.int32)}
    pictures = {"picture": pa.array(drawn, pa.binary()), "picture_uri": pa.nulls(len(drawn), pa.string())}
    return {ITEM_PICTURES: pa.table(columns | pictures)}


def _images_table(items: Items, seed: int) -> pa.Table:
    item, position, embeddings = make_images(items, seed)
    ids = np.array(items.ids)[item]
    return pa.table(
        {"item_id": ids, "position": position.astype(np.int32), "image_embedding": to_list_column(embeddings)}
    )


def _queries_table(shop: Shop, *, has_embeddings: bool) -> pa.Table:
    """The queries; without embeddings the pipeline makes them of texts and of pictures."""
    tables = [
        pa.table(
            {
                "query_id": queries.ids,
                "query_kind": [kind] * len(queries.ids),
                "text": pa.array(queries.texts, pa.string()),
                **_embeddings(kind, queries, is_given=has_embeddings),
                "query_item_id": pa.array(
                    [shop.items.ids[row] if row >= 0 else None for row in queries.items], pa.string()
                ),
            }
        )
        for kind, queries in shop.queries.items()
    ]
    return pa.concat_tables(tables)


def _embeddings(kind: str, queries: Queries, *, is_given: bool) -> dict[str, pa.Array]:
    count = len(queries.ids)
    if is_given:
        spaces = pa.array([f"demo-{kind}-1"] * count, pa.string())
        return {"query_embedding": to_list_column(queries.embeddings), "embedding_space": spaces}
    return {"query_embedding": pa.nulls(count, pa.list_(pa.float32())), "embedding_space": pa.nulls(count, pa.string())}


def _true_queries_table(shop: Shop, engagements: dict[str, list[str]]) -> pa.Table:
    tables = [
        pa.table(
            {
                "query_id": queries.ids,
                "engagement": [engagement] * len(queries.ids),
                "true_vector": to_list_column(queries.true_vectors + engagement_taste(shop.seed, engagement)),
            }
        )
        for kind, queries in shop.queries.items()
        for engagement in engagements[kind]
    ]
    return pa.concat_tables(tables)


def main() -> None:
    """Run the job from its command line."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
