"""Cut the pairs of texts and items on which a shop's own text encoder is trained.

Reads: engagement_logs, queries, items, query_embeddings and item_features of the last run of the pipeline.
Writes: query_pairs, query_pairs_validation, item_text_pairs.
One row is: of query_pairs, one pair of a distinct search text and an engaged item of the training window; of
query_pairs_validation, one of the end of that window, whose events query_pairs counts too, but not in fit_weight; of
item_text_pairs, one item with its own text. The held-out window is not read.
Safe to rerun because the rows follow from the inputs and the settings alone, and every table is replaced in one commit.

    spark-submit --properties-file spark-defaults.conf jobs/build_query_pairs.py --settings pipeline.toml
"""

from __future__ import annotations

from dataclasses import replace

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.runtime import command_line
from jobs.runtime.job_run import JobRun
from jobs.transforms.engagements import TRAINING, VALIDATION, checked_engagements
from jobs.transforms.hot_keys import hot_keys
from jobs.transforms.items import item_texts, split_items
from jobs.transforms.quarantine import accepted
from jobs.transforms.queries import with_verdicts
from jobs.transforms.query_pairs import by_text, changed_queries, item_text_pairs, texts_of, with_capped_weights
from jobs.transforms.training_pairs import (
    FileLayout,
    capped,
    laid_out,
    packed,
    pairs_of,
    training_rows,
    validation_pairs,
    with_file,
    with_negatives,
)
from schemas.columns import Table
from schemas.contracts import ITEM_TEXT, space_of
from schemas.errors import SettingsError, TableError
from schemas.metrics import QueryPairMetrics
from schemas.query_pair_tables import ITEM_TEXT_PAIRS, QUERY_PAIRS, VALIDATION_QUERY_PAIRS
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_FEATURES, BUILD_QUERY_PAIRS, EMBED_ITEMS, EMBED_QUERIES
from schemas.tables import ENGAGEMENT_LOGS, ITEM_FEATURES, ITEMS, QUERIES, QUERY_EMBEDDINGS, ROW_CHECKSUM

STAGE = BUILD_QUERY_PAIRS

_ROWS_PER_VALIDATION_FILE = 100_000
_TABLES = {"training_text": QUERY_PAIRS, "item_text": ITEM_TEXT_PAIRS, "validation_text": VALIDATION_QUERY_PAIRS}
"""`<window>_<task>`, as `with_file` calls a table -> the table, in the order of its files."""


def build_pairs(engagements: DataFrame, texts: DataFrame, settings: Settings) -> DataFrame:
    """The pairs of distinct texts and items in the training window, before the caps.

    Args:
        engagements: See `checked_engagements`.
        texts: See `texts_of`.
        settings: Windows, and what an event weighs by its age.
    """
    counted = accepted(engagements).where(F.col("window") == TRAINING)
    return pairs_of(
        by_text(counted, texts),
        train_end=settings.dates.train_end,
        validation_start=settings.dates.validation_start,
        half_life_days=settings.half_life_days,
    )


def build_rows(pairs: DataFrame, texts: DataFrame, features: DataFrame, settings: Settings) -> DataFrame:
    """The rows of QUERY_PAIRS, whose text is still called query_id: `pairs` after the caps, with what training reads.

    Args:
        pairs: See `build_pairs`.
        texts: See `texts_of`.
        features: item_features, unique by item_id.
        settings: The caps.
    """
    cut = settings.search_text
    kept = capped(pairs, per_item=cut.max_pairs_per_item, per_query=cut.max_pairs_per_text)
    weighed = with_capped_weights(kept, cut.max_pair_weight)
    hot = hot_keys(weighed, ("query_id", "item_id"), row_count=weighed.count())
    queries = with_negatives(_packed_texts(texts), weighed, {})
    return training_rows(weighed, queries, features.drop("item_key"), hot=hot)


def _packed_texts(texts: DataFrame) -> DataFrame:
    """query_id, which is the text, and its packed frozen embedding; unique."""
    distinct = texts.groupBy("text").agg(F.first("query_embedding").alias("query_embedding"))
    return packed(distinct.withColumnRenamed("text", "query_id"))


def run(spark: SparkSession, settings: Settings) -> None:
    """Read what the pipeline has made, cut the pairs, write."""
    with JobRun(spark, settings, STAGE) as job:
        _require_kinds(settings)
        job.require_agreement([EMBED_QUERIES, EMBED_ITEMS, BUILD_ITEM_FEATURES])
        logs, features, embeddings = (job.read(table) for table in (ENGAGEMENT_LOGS, ITEM_FEATURES, QUERY_EMBEDDINGS))
        kinds = settings.search_text.query_kinds
        queries = accepted(with_verdicts(job.read(QUERIES)))
        texts = texts_of(queries, embeddings, kinds).persist()
        hot = hot_keys(logs, ("query_id", "item_id"), row_count=job.row_count(ENGAGEMENT_LOGS))
        engagements = checked_engagements(logs, embeddings, features, settings=settings, hot=hot)
        pairs = build_pairs(engagements, texts, settings).persist()
        rows = build_rows(pairs, texts, features, settings).persist()
        measured = validation_pairs(pairs).join(_packed_texts(texts), on="query_id", how="inner")
        items = item_texts(split_items(job.read(ITEMS))[0], settings.query_encoder.item_text)
        own = item_text_pairs(items, features).join(features.drop("item_key"), on="item_id", how="inner")
        sizes = {"training_text": rows.count(), "item_text": own.count(), "validation_text": measured.count()}
        _require_pairs(sizes["training_text"], settings)
        for name, part in (("training_text", rows), ("item_text", own), ("validation_text", measured)):
            _write(job, part, name, sizes[name])
        changed = changed_queries(queries, embeddings, kinds)
        if changed:
            print(f"  warning: {changed:,} queries have changed since embed_queries and are left out", flush=True)
        job.metrics = replace(_metrics(job, sizes, pairs, queries), changed_queries=changed)
        for cached in (texts, pairs, rows):
            cached.unpersist()


def _write(job: JobRun[QueryPairMetrics], rows: DataFrame, name: str, count: int) -> None:
    """Write one of the tables, its rows in files of random-looking order."""
    table = _TABLES[name]
    most = _ROWS_PER_VALIDATION_FILE if name.startswith(VALIDATION) else job.settings.training_tables.rows_per_file
    layout = FileLayout.of({name: count}, most)
    placed = with_file(rows, layout).withColumnRenamed("fit_count", "fit_engagement_count")
    named = placed.withColumnRenamed("query_id", "text").select(*_stored(table), "file", "position")
    job.write_tables(laid_out(named, layout.file_count), [job.place(table, 0, count)])


def _stored(table: Table) -> list[str]:
    return [name for name in table.column_names if name != ROW_CHECKSUM]


def _metrics(
    job: JobRun[QueryPairMetrics], sizes: dict[str, int], pairs: DataFrame, queries: DataFrame
) -> QueryPairMetrics:
    kinds = job.settings.search_text.query_kinds
    spaces = {job.made_with.get(space_of(kind), "") for kind in kinds} | {job.made_with.get(ITEM_TEXT, "none")}
    totals = pairs.agg(
        F.count("*").alias("pairs"),
        F.sum("engagement_count").alias("events"),
        F.countDistinct("query_id").alias("texts"),
    ).first()
    assert totals is not None
    silent = queries.where(F.col("query_kind").isin(list(kinds)) & ~F.col("has_text")).count()
    return QueryPairMetrics(
        encoder=spaces.pop() if len(spaces) == 1 else "",
        texts=totals["texts"],
        pairs=sizes["training_text"],
        events=totals["events"],
        capped_pairs=totals["pairs"] - sizes["training_text"],
        validation_pairs=sizes["validation_text"],
        item_texts=sizes["item_text"],
        queries_without_text=silent,
        blank_item_texts=job.row_count(ITEM_FEATURES) - sizes["item_text"],
    )


def _require_kinds(settings: Settings) -> None:
    """Events are those of [[tasks]], so a kind that none of them has would be left out without a word.

    Raises:
        SettingsError: there is such a kind, or one that is embedded by pictures.
    """
    known = sorted({task.query_kind for task in settings.task_list})
    others = sorted(set(settings.search_text.query_kinds) - set(known))
    if others:
        raise SettingsError(
            f"search_text.query_kinds names {' and '.join(map(repr, others))}, which no [[tasks]] has: name some of "
            f"{', '.join(map(repr, known))}, or add the task"
        )
    seen = sorted(set(settings.search_text.query_kinds) & set(settings.pictures.query_kinds))
    if seen:
        raise SettingsError(
            f"search_text.query_kinds names {' and '.join(map(repr, seen))}, whose queries are embedded by pictures "
            "(pictures.query_kinds) and not by their texts: name it in one of the two"
        )


def _require_pairs(count: int, settings: Settings) -> None:
    """Nothing is written where nothing can be learned.

    Raises:
        TableError: no pair has a text.
    """
    if not count:
        kinds = " or ".join(settings.search_text.query_kinds)
        raise TableError(
            QUERIES.name,
            "text",
            expected=f"texts of {kinds} queries with an engagement of [[tasks]] in the training window",
            found="none",
            cure="Fill queries.text, or name the kinds that have texts in search_text.query_kinds.",
        )


def main() -> None:
    """The command line."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
