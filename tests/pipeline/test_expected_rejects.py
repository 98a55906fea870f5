"""What doctor foresees and what the jobs do: the same rows, the same reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.transforms.engagements import checked_engagements
from jobs.transforms.item_images import packed_images, split_images
from jobs.transforms.items import split_items
from jobs.transforms.keys import item_key
from jobs.transforms.quarantine import accepted
from jobs.transforms.queries import with_verdicts
from jobs.transforms.query_pictures import with_picture_embeddings
from pipeline.expected_rejects import RULES, Known, first_rules
from schemas.columns import Table
from schemas.settings import Settings
from schemas.spark import conform, struct_type
from schemas.tables import ENGAGEMENT_LOGS, ITEM_IMAGES, ITEMS, MAX_ID_BYTES, QUERIES

ROWS = 300
DAY = 86_400_000_000
END = 20_513 * DAY  # 1 March 2026, make_settings' as_of
IDS = [b"a", b"b", b"c", b"\xc3\xa4", b" a", b"", b" \t", None, b"caf\xe9", b"x" * MAX_ID_BYTES, b"x" * 513]
SOUND = [f"id{n}".encode() for n in range(60)]


def texts(rng: np.random.Generator, pool: list[Any], sound: list[bytes], share: float = 0.3) -> pa.Array:
    """Texts of which a share is of a pool that holds what is no text, too."""
    drawn = [pool[rng.integers(len(pool))] if rng.random() < share else sound[rng.integers(len(sound))]
             for _ in range(ROWS)]  # fmt: skip
    return as_strings(pa.array(drawn, pa.binary()))


def as_strings(raw: pa.Array) -> pa.Array:
    """Bytes as texts, whatever they are."""
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers(), raw.null_count, raw.offset)


def vectors(rng: np.random.Generator, share: float) -> pa.Array:
    """Vectors of two numbers, few of them distinct; some that are none."""
    bad = [None, [], [1.0], [1.0, float("nan")], [1.0, None], [0.0, 0.0], [1e30, 1.0]]
    drawn = [bad[rng.integers(len(bad))] if rng.random() < share else [1.0, float(rng.integers(2))]
             for _ in range(ROWS)]  # fmt: skip
    return pa.array(drawn, pa.list_(pa.float32()))


def read(spark: SparkSession, rows: pa.Table, table: Table, folder: Path) -> DataFrame:
    pq.write_table(rows, folder / f"{table.name}.parquet")
    return conform(spark.read.parquet(str(folder / f"{table.name}.parquet")), table)


def foreseen(rows: pa.Table, table: Table, settings: Settings, known: Known) -> Counter[tuple[str, str]]:
    rules = RULES[table.name](rows, settings, known)
    broken = first_rules(rules, len(rows))
    return Counter((rules[number].reason, rules[number].column) for number in broken[broken >= 0])


def done(rejects: DataFrame) -> Counter[tuple[str, str]]:
    return Counter(tuple(row) for row in rejects.select("reason", "source_column").collect())


def require_some(found: Counter[tuple[str, str]], *reasons: str) -> None:
    """That the rows held what they are to show."""
    assert set(reasons) <= {reason for reason, _ in found}


@pytest.mark.parametrize("seed", range(2))
def test_items_and_images(
    spark: SparkSession, make_settings: Callable[..., Settings], tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    settings = make_settings(model={"image_length": 2})
    colors = [[None, [], ["red"], ["red", "blue"], [None]][rng.integers(5)] for _ in range(ROWS)]
    items = pa.table({"item_id": texts(rng, IDS, SOUND), "title": texts(rng, IDS, [b"mug", b"cup"]), "colors": colors})
    usable, rejected = split_items(read(spark, items, ITEMS, tmp_path))
    expected = foreseen(items, ITEMS, settings, Known())
    assert expected == done(rejected)
    require_some(expected, "null_id", "bad_text", "long_id", "duplicate_item", "conflicting_item")

    places = pa.array([None if rng.random() < 0.05 else int(rng.integers(4)) for _ in range(ROWS)], pa.int32())
    ids = [*SOUND[:20], b"nowhere"]
    images = pa.table({"item_id": texts(rng, IDS, ids), "position": places, "image_embedding": vectors(rng, 0.2)})
    _, rejected = split_images(packed_images(read(spark, images, ITEM_IMAGES, tmp_path), 2), usable, 2)
    known = as_strings(pa.array([row[0] for row in usable.selectExpr("cast(item_id as binary)").collect()]))
    expected = foreseen(images, ITEM_IMAGES, settings, Known(items=known))
    assert expected == done(rejected)
    require_some(expected, "null_position", "wrong_length", "bad_vector", "unknown_item", "duplicate_image",
                 "conflicting_image")  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_queries(spark: SparkSession, make_settings: Callable[..., Settings], tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries = pa.table(
        {
            "query_id": texts(rng, IDS, SOUND * 4), "query_kind": texts(rng, [None, b"", b"\xff"], [b"search"], 0.1),
            "text": texts(rng, IDS, [b"red mug", b""]),
            "query_embedding": pa.array([None if rng.random() < 0.5 else [1.0, 2.0] for _ in range(ROWS)]),
            "embedding_space": texts(rng, [None, b" "], [b"space"], 0.2),
            "query_item_id": texts(rng, IDS, [b"i1"], 0.1),
        }
    )  # fmt: skip
    verdicts = with_verdicts(read(spark, queries, QUERIES, tmp_path)).where("reject IS NOT NULL").select("reject.*")
    expected = foreseen(queries, QUERIES, make_settings(), Known())
    assert expected == done(verdicts)
    require_some(expected, "null_kind", "unnamed_space", "no_embedding_no_text", "duplicate_query", "conflicting_query")


def test_viewed_images(spark: SparkSession, make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    rows = {  # text, query_embedding, embedding_space, query_item_id
        "shown": (None, None, None, b"i1"), "own": (None, [1.0, 2.0], b"space", None),
        "blank": (None, None, None, b" "),
        "told": (b"a mug", None, None, None),
    }  # fmt: skip
    table = {"query_id": as_strings(pa.array([name.encode() for name in [*rows, "mute"]]))}
    table["query_kind"] = as_strings(pa.array([b"closeup"] * len(rows) + [b"search"]))
    for number, name in enumerate(("text", "query_embedding", "embedding_space", "query_item_id")):
        values = [row[number] for row in rows.values()] + [None]
        table[name] = pa.array(values) if name == "query_embedding" else as_strings(pa.array(values, pa.binary()))
    queries, kinds = pa.table(table), ["closeup"]
    settings = make_settings(pictures={"folder": "/models/one", "query_kinds": kinds})
    images = spark.createDataFrame([("i1", 0, [1.0, 2.0])], struct_type(ITEM_IMAGES))
    filled = with_picture_embeddings(read(spark, queries, QUERIES, tmp_path), images, kinds, "space", 1)
    verdicts = with_verdicts(filled, kinds).where("reject IS NOT NULL").select("reject.*")
    expected = foreseen(queries, QUERIES, settings, Known())
    assert expected == done(verdicts)
    assert expected == {("no_picture", "query_item_id"): 2, ("no_embedding_no_text", "text"): 1}


@pytest.mark.parametrize("event_id_is", ["event", "order"])
def test_events(spark: SparkSession, make_settings: Callable[..., Settings], tmp_path: Path, event_id_is: str) -> None:
    rng = np.random.default_rng(7)
    tasks = [{"query_kind": "search", "engagement": name} for name in ("click", "save")]
    against = [{"query_kind": "search", "engagement": "return"}]
    settings = make_settings(tasks=tasks, negatives=against, inputs={"event_id_is": event_id_is}, loss={"form": "full"})
    some = [*range(-40 * DAY, 3 * DAY, DAY // 2), None]
    when = pa.array([t if t is None else END + t for t in rng.choice(np.array(some, object), ROWS)], pa.int64())
    kinds = [b"search", b"closeup"]
    queries = pa.table({"query_id": as_strings(pa.array([b"q1", b"q2"])), "query_kind": as_strings(pa.array(kinds))})
    log = pa.table(
        {
            "event_id": texts(rng, IDS, [f"e{n}".encode() for n in range(200)]),
            "event_ts": when.cast(pa.timestamp("us", "UTC")), "user_id": texts(rng, IDS, [b"u"], 0.1),
            "query_id": texts(rng, [*IDS, b"Q1"], [b"q1", b"q2"], 0.1),
            "item_id": texts(rng, [*IDS, b"i9"], [b"i1"], 0.1),
            "engagement": texts(rng, [None, b"inquiry"], [b"click", b"save", b"return"], 0.1),
        }
    )  # fmt: skip
    log = pa.concat_tables([log, log.slice(0, 40)])
    known_queries = spark.createDataFrame(queries).withColumn("query_item_id", F.lit(None).cast("string"))
    known_items = spark.createDataFrame([("i1",)], "item_id string").withColumn("item_key", item_key("item_id"))
    checked = checked_engagements(
        read(spark, log, ENGAGEMENT_LOGS, tmp_path), known_queries, known_items, settings=settings,
        hot={"query_id": [], "item_id": []},
    )  # fmt: skip
    expected = foreseen(log, ENGAGEMENT_LOGS, settings, Known(as_strings(pa.array([b"i1"])), queries))
    assert expected == done(checked.where("reject IS NOT NULL").select("reject.*"))
    assert accepted(checked).count() == len(log) - sum(expected.values())
    require_some(expected, "null_event_ts", "bad_text", "long_id", "duplicate_event", "late", "future", "gap",
                 "unknown_query", "unknown_item", "unknown_engagement", "measured_negative", "no_task")  # fmt: skip
    assert ("reused_event_id", "event_id") in expected or event_id_is == "order"
