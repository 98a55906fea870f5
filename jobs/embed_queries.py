"""Give every query its frozen embedding: its own, brought to unit length, or one made from its text.

Reads: queries; items (to fit the text encoder, where any query has text).
Writes: query_embeddings, rejected_queries; the encoder at `<warehouse>/query_encoder/`.
One row is: one query with its embedding; one query that cannot be used, and why.
Safe to rerun because: the encoder is fitted on a fixed sample in a fixed order, texts are encoded in groups that depend
on the texts alone, and each table is replaced in one commit.

    spark-submit --properties-file spark-defaults.conf jobs/embed_queries.py --settings pipeline.toml
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from itemsage_model.encoders.frozen_text.stored import fit_encoder, from_bytes, save, to_bytes
from itemsage_model.encoders.frozen_text.text_encoder import TextEncoder
from jobs.runtime import command_line
from jobs.runtime.job_run import JobRun
from jobs.transforms.quarantine import Check, accepted, not_a_vector, rejected, with_reject
from schemas.cells import to_list_column, to_matrix
from schemas.errors import SettingsError, TableError
from schemas.metrics import QueryMetrics
from schemas.settings import QueryEncoderSettings, Settings
from schemas.stages import EMBED_QUERIES
from schemas.tables import EMBEDDING_DIM, ITEMS, QUERIES, QUERY_EMBEDDINGS, REJECTED_QUERIES, TEXT_FEATURES

STAGE = EMBED_QUERIES

FIT_ITEMS = 100_000
"""Most catalog items the encoder is fitted on, chosen by hash: a whole catalog need not fit on the driver."""

FIT_FEATURES = tuple(name for name in TEXT_FEATURES if name not in ("merchant_domain", "product_links", "size"))
"""Text features that are language; links and sizes would only fill the vocabulary."""

TEXTS_PER_GROUP = 4_096
"""Texts that are encoded together. A group holds the same texts whatever the partitions are."""

_ENCODED = "query_id string, query_kind string, query_embedding array<float>, query_item_id string"


def with_verdicts(queries: DataFrame) -> DataFrame:
    """Add `has_text`, and `reject` where a query cannot be used as it stands."""
    is_blank_space = F.col("embedding_space").isNull() | ~F.col("embedding_space").rlike(r"\S")
    has_embedding = F.col("query_embedding").isNotNull()
    first = Window.partitionBy("query_id").orderBy(*[name for name in QUERIES.column_names if name != "query_id"])
    checks = [
        Check("null_id", _is_blank("query_id"), "query_id", "an id", "Give the query an id."),
        Check("null_kind", _is_blank("query_kind"), "query_kind", "closeup, search, ...", "Say which kind it is."),
        Check(
            "duplicate_id", F.col("copy") > 1, "query_id", "one row per query_id",
            "Keep one row; the first one by content was used.",
        ),
        Check(
            "not_a_vector", not_a_vector("query_embedding", EMBEDDING_DIM), "query_embedding",
            f"{EMBEDDING_DIM} finite numbers, not all zero", "Correct it, or leave it null to have the text embedded.",
        ),
        Check(
            "unnamed_space", has_embedding & is_blank_space, "embedding_space",
            "name and version of the encoder", "Name the encoder that made the embedding, such as pinsage-2026-01.",
        ),
        Check(
            "no_embedding_no_text", ~has_embedding & ~F.col("has_text"), "text",
            "a text or an embedding", "Give the query one of them.",
        ),
    ]  # fmt: skip
    flagged = queries.withColumn("has_text", ~_is_blank("text")).withColumn("copy", F.row_number().over(first))
    return with_reject(flagged, QUERIES, checks)


def catalog_texts(items: DataFrame, limit: int = FIT_ITEMS) -> DataFrame:
    """One column `text`: what the catalog says about at most `limit` items, chosen by hash, sorted by item_id."""
    parts = [F.array_join(name, " ") if TEXT_FEATURES[name] else F.col(name) for name in FIT_FEATURES]
    texts = items.where(F.col("item_id").isNotNull()).select("item_id", F.concat_ws(" ", *parts).alias("text"))
    chosen = texts.where(F.col("text").rlike(r"\S")).orderBy(F.xxhash64("item_id"), "item_id", "text").limit(limit)
    return chosen.orderBy("item_id", "text").select("text")


def check_spaces(usable: DataFrame, encoder_name: str | None) -> dict[str, str]:
    """Refuse two embedding spaces within one query kind: their cells cannot be compared.

    Args:
        usable: Accepted queries.
        encoder_name: The space of queries without an embedding.

    Returns:
        Query kind -> its space.

    Raises:
        TableError: a kind mixes spaces.
    """
    own = F.when(F.col("query_embedding").isNotNull(), F.col("embedding_space"))
    spaces = usable.select("query_kind", F.coalesce(own, F.lit(encoder_name)).alias("space")).distinct()
    found: dict[str, list[str]] = {}
    for row in spaces.orderBy("query_kind", "space").collect():
        found.setdefault(row["query_kind"], []).append(row["space"])
    for kind, names in found.items():
        if len(names) > 1:
            raise TableError(
                QUERIES.name,
                "embedding_space",
                expected=f"one embedding space for all {kind} queries",
                found=" and ".join(names),
                cure="Embed all of them with one encoder, or leave query_embedding null so that text is embedded.",
            )
    return {kind: name for kind, (name,) in found.items()}


def build(verdicts: DataFrame, encoder: TextEncoder | None, group_count: int) -> DataFrame:
    """Embed the queries of `with_verdicts` that passed, with `reject` where the text holds no known token.

    Args:
        verdicts: Output of `with_verdicts`.
        encoder: The fitted encoder; None where every accepted query has an embedding.
        group_count: Number of groups in which texts are encoded.
    """
    usable = accepted(verdicts)
    own = usable.where(F.col("query_embedding").isNotNull())
    columns = own.select(*QUERY_EMBEDDINGS.column_names)
    embedded = columns.mapInArrow(_to_unit_length, columns.schema)
    if encoder is not None:
        group = F.pmod(F.xxhash64("text"), F.lit(group_count)).alias("group")
        groups = usable.where(F.col("query_embedding").isNull()).groupBy(group)
        from_text = groups.applyInArrow(_encode_group(usable.sparkSession, encoder), _ENCODED)
        embedded = embedded.unionByName(from_text.withColumn("embedding_space", F.lit(encoder.name)))
    is_unknown = F.forall("query_embedding", lambda number: number == 0)
    cure = "Correct the text, give an embedding, or raise query_encoder.lsa_vocabulary."
    unknown = Check("unknown_text", is_unknown, "text", "a text with a word that the catalog uses", cure)
    return with_reject(embedded, QUERIES, [unknown])


def run(spark: SparkSession, settings: Settings) -> None:
    """Read the queries, fit the encoder where it is needed, embed, write."""
    with JobRun(spark, settings, STAGE) as job:
        verdicts = with_verdicts(job.read(QUERIES)).persist(StorageLevel.MEMORY_AND_DISK)
        usable = accepted(verdicts)
        text_count = usable.where("query_embedding is null").count()
        encoder = None
        if usable.where("has_text").limit(1).count():
            encoder = _fit(job.read(ITEMS), settings.query_encoder)
            save(encoder, settings.layout.query_encoder)
        name = encoder.name if encoder else None
        spaces = check_spaces(usable, name)
        embedded = build(verdicts, encoder, 1 + text_count // TEXTS_PER_GROUP).persist(StorageLevel.MEMORY_AND_DISK)
        job.write(accepted(embedded), QUERY_EMBEDDINGS)
        refused = [rejected(rows, REJECTED_QUERIES) for rows in (verdicts, embedded)]
        job.write_rejected(refused[0].unionByName(refused[1]), REJECTED_QUERIES)
        explained = round(encoder.explained_variance, 4) if encoder else None
        job.metrics = QueryMetrics(name, text_count, spaces, explained)
        embedded.unpersist()
        verdicts.unpersist()


def _fit(items: DataFrame, settings: QueryEncoderSettings) -> TextEncoder:
    texts = [row["text"] for row in catalog_texts(items).collect()]
    try:
        return fit_encoder(settings, texts)
    except SettingsError:
        raise
    except ValueError as error:
        raise TableError(
            ITEMS.name,
            "title",
            expected="text of the catalog, to fit the query encoder on",
            found=str(error),
            cure="Fill the text features, or give every query an embedding and no text.",
        ) from error


def _encode_group(spark: SparkSession, encoder: TextEncoder) -> Callable[[pa.Table], pa.Table]:
    stored = spark.sparkContext.broadcast(to_bytes(encoder))

    def encode(queries: pa.Table) -> pa.Table:
        texts = queries["text"].to_pylist()
        distinct = sorted(set(texts))
        encoded = from_bytes(*stored.value).encode(distinct)
        row_of = {text: row for row, text in enumerate(distinct)}
        embeddings = to_list_column(encoded[[row_of[text] for text in texts]])
        return queries.select(["query_id", "query_kind", "query_item_id"]).add_column(2, "query_embedding", embeddings)

    return encode


def _is_blank(column: str) -> Column:
    return F.col(column).isNull() | ~F.col(column).rlike(r"\S")


def _to_unit_length(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        numbers = to_matrix(batch.column("query_embedding")).astype(np.float64)
        unit = (numbers / np.linalg.norm(numbers, axis=1, keepdims=True)).astype(np.float32)
        place = batch.schema.get_field_index("query_embedding")
        columns = [*batch.columns[:place], to_list_column(unit), *batch.columns[place + 1 :]]
        yield pa.RecordBatch.from_arrays(columns, batch.schema.names)


def main() -> None:
    """Run the job from the command line."""
    command_line.main(STAGE.name, run, __doc__)


if __name__ == "__main__":
    main()
