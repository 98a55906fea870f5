"""Count the tokens of the catalog's texts and number the most frequent ones of each kind.

Reads:  items
Writes: vocabulary
One row is one token that the model knows. Ids are dense: character trigrams, then word unigrams, then word bigrams,
each by falling count, ties by token.
Safe to rerun because counts are sums over the usable items and ties are broken by the token: neither partitions nor
the order of rows can matter. The table is replaced in one commit.

    spark-submit --properties-file spark-defaults.conf jobs/build_vocabulary.py --settings pipeline.toml
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import reduce

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from itemsage_model.text.tokens import TOKEN_KINDS, token_kinds
from jobs.runtime import command_line
from jobs.runtime.job_run import JobRun
from jobs.transforms.items import broken_texts, joined_texts, split_items
from schemas.errors import TableError
from schemas.input_tables import find_input
from schemas.metrics import VocabularyMetrics
from schemas.settings import FeatureSettings, Settings
from schemas.stages import BUILD_VOCABULARY
from schemas.tables import ITEMS, VOCABULARY

STAGE = BUILD_VOCABULARY

_MAX_TOKENS = 1_000_000
"""Distinct tokens that one task holds before it hands on its counts; bounds a worker's memory, not the result."""

_COUNTED = pa.schema([("token_kind", pa.string()), ("token", pa.string()), ("token_count", pa.int64())])


def count_tokens(items: DataFrame, features: FeatureSettings) -> DataFrame:
    """How often each token occurs in the texts of the usable items: token_kind, token, token_count."""
    usable, _ = split_items(items)
    counted = joined_texts(usable, features.text_features).drop("item_id").mapInArrow(
        _count, "token_kind string, token string, token_count long"
    )  # fmt: skip
    return counted.groupBy("token_kind", "token").agg(F.sum("token_count").alias("token_count"))


def most_frequent(counts: DataFrame, features: FeatureSettings) -> DataFrame:
    """Keep and number the most frequent tokens of each kind.

    Args:
        counts: Rows of `count_tokens`.
        features: How many tokens of each kind, and how often a token must occur.
    """
    sizes = (features.char_trigrams, features.word_unigrams, features.word_bigrams)
    by_count = (F.desc("token_count"), F.asc("token"))
    frequent = counts.where(F.col("token_count") >= features.min_token_count)
    kinds = [
        frequent.where(F.col("token_kind") == kind).orderBy(*by_count).limit(size).withColumn("kind", F.lit(number))
        for number, (kind, size) in enumerate(zip(TOKEN_KINDS, sizes, strict=True))
    ]
    # One window over everything is one task, of at most as many rows as the vocabulary has.
    everything = Window.partitionBy(F.lit(0)).orderBy("kind", *by_count)
    numbered = reduce(DataFrame.unionByName, kinds).withColumn("token_id", F.row_number().over(everything) - 1)
    return numbered.select(*VOCABULARY.column_names)


def build(items: DataFrame, settings: Settings) -> DataFrame:
    """Build the vocabulary of a catalog from rows of ITEMS."""
    return most_frequent(count_tokens(items, settings.features), settings.features)


def _count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    counters: tuple[Counter[str], ...] = tuple(Counter() for _ in TOKEN_KINDS)
    for batch in batches:
        for text in batch.column("texts").flatten().to_numpy(zero_copy_only=False):
            for counter, tokens in zip(counters, token_kinds(text), strict=True):
                counter.update(tokens)
        if sum(map(len, counters)) > _MAX_TOKENS:
            yield from _hand_on(counters)
    yield from _hand_on(counters)


def _hand_on(counters: tuple[Counter[str], ...]) -> Iterator[pa.RecordBatch]:
    for kind, counter in zip(TOKEN_KINDS, counters, strict=True):
        # Declared, as a column of an empty counter would be of no type, and Spark takes one type only.
        columns = [[kind] * len(counter), list(counter), list(counter.values())]
        yield pa.RecordBatch.from_arrays(
            [pa.array(*one) for one in zip(columns, _COUNTED.types, strict=True)], schema=_COUNTED
        )
        counter.clear()


def no_text(items: DataFrame, settings: Settings) -> TableError:
    """The refusal of a catalog in which no text feature of the model holds a word."""
    broken = broken_texts(items, settings.features.text_features)
    features, found = settings.features.text_features, find_input(settings.table_uri(ITEMS.name), ITEMS)
    empty = [name for name in found.known if name in features]
    others = f"; columns that nothing reads: {', '.join(found.others)}" if found.others else ""
    cure = 'Rename the columns that hold the texts, or fill them; or take "text" out of model.sequence.'
    if broken:
        others = "; texts that are no UTF-8: " + ", ".join(f"{count:,} in {name}" for name, count in broken.items())
        cure = "Write the texts as UTF-8 where they are made: an item with another text is left out."
    return TableError(
        ITEMS.name,
        ", ".join(features),
        expected="a word in at least one of them (features.text_features) in at least one usable item",
        found=(f"no word in {', '.join(empty)}" if empty else "none of these columns") + others,
        cure=cure,
    )


def run(spark: SparkSession, settings: Settings) -> None:
    """Read the items, count, write the vocabulary."""
    with JobRun(spark, settings, STAGE) as job:
        items = job.read(ITEMS)
        counts = count_tokens(items, settings.features).persist()  # read once per kind
        distinct = counts.groupBy("token_kind").agg(F.count("*").alias("distinct")).collect()
        if not distinct and "text" in settings.model.sequence:
            counts.unpersist()
            raise no_text(items, settings)
        job.write(most_frequent(counts, settings.features), VOCABULARY)
        job.metrics = VocabularyMetrics(**{f"distinct_{row['token_kind']}s": row["distinct"] for row in distinct})
        counts.unpersist()


def main() -> None:
    """Run the job from its command line."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
