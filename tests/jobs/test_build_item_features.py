"""build_item_features: token ids and packed images of every usable item, and each way for a row to be rejected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from itemsage_model.text.tokenizer import Tokenizer, pack_vocabulary
from itemsage_model.text.tokens import token_kinds
from jobs import build_item_features
from jobs.build_item_features import packed_vocabulary
from jobs.runtime.worker_rows import WorkerRows
from jobs.transforms.item_images import packed_images
from jobs.transforms.item_sources import split
from schemas import contracts
from schemas.arrow import conform_batch
from schemas.checksums import with_checksums
from schemas.errors import TableError
from schemas.metrics import ItemTextMetrics, VocabularyMetrics
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.settings import Settings
from schemas.spark import conform, struct_type
from schemas.tables import (
    CHANGED_ITEM_FEATURES,
    ITEM_FEATURE_CHANGES,
    ITEM_FEATURES,
    ITEM_IMAGES,
    ITEM_TEXT_EMBEDDINGS,
    ITEMS,
    REJECTED_ITEMS,
    VOCABULARY,
)

MakeSettings = Callable[..., Settings]
ITEM = "item_id string, title string, colors array<string>"
IMAGE = "item_id string, position int, image_embedding array<float>"
VOCABULARY_BYTES = pack_vocabulary(["#re", "red"], ["red", "mug", "tea"], ["red#mug"])
FEATURES = {"text_features": ["title", "colors"]}


class ItemFeatures(NamedTuple):
    """What the job would write: rows of ITEM_FEATURES, and of REJECTED_ITEMS."""

    features: WorkerRows
    rejected: DataFrame


def vector(*numbers: float) -> list[float]:
    return [float(number) for number in numbers] + [0.0] * (256 - len(numbers))


def built(
    spark: SparkSession,
    settings: Settings,
    items: list[Any],
    images: list[Any] | None = None,
    vocabulary: bytes = VOCABULARY_BYTES,
    partitions: int = 1,
    embeddings: list[Any] = [],  # noqa: B006  (never changed)
) -> ItemFeatures:
    embedding_rows = spark.createDataFrame([(*row, None) for row in embeddings], struct_type(ITEM_TEXT_EMBEDDINGS))
    item_rows = conform(spark.createDataFrame(items, ITEM), ITEMS).repartition(partitions)
    packed = None
    if images is not None:
        packed = packed_images(conform(spark.createDataFrame(images, IMAGE), ITEM_IMAGES).repartition(partitions), 256)
    usable = split(item_rows, packed, settings, 1)
    rows = build_item_features.build(usable, embedding_rows, vocabulary, settings)
    return ItemFeatures(rows, usable.rejected)


def collected(result: ItemFeatures) -> tuple[list[Row], dict[str, int]]:
    """The rows that the workers would write, and the sums over them."""
    make, sums = result.features.make, result.features.sums

    def both(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in make(batches):
            whole = conform_batch(with_checksums(batch, ITEM_FEATURES), ITEM_FEATURES)
            columns = dict(zip(ITEM_FEATURES.column_names, whole.columns, strict=True))
            yield pa.RecordBatch.from_pydict(columns | {name: batch.column(name).cast(pa.int64()) for name in sums})

    schema = reduce(lambda known, name: known.add(name, "long"), sums, struct_type(ITEM_FEATURES))
    rows = result.features.source.mapInArrow(both, schema).collect()
    return rows, {name: sum(row[name] for row in rows) for name in sums}


def feature_rows(result: ItemFeatures) -> list[Row]:
    return collected(result)[0]


def ids(cell: bytes) -> list[int]:
    return np.frombuffer(cell, "<i4").tolist()


def embeddings(cell: bytes) -> Any:
    return np.frombuffer(cell, "<f2").reshape(-1, 256)


def reasons(rejected: DataFrame) -> list[tuple[Any, ...]]:
    rows = rejected.select("item_id", "source_table", "source_column", "reason").collect()
    return sorted(map(tuple, rows), key=str)


def test_an_item_becomes_ids_counts_and_images_by_position(spark: SparkSession, make_settings: MakeSettings) -> None:
    settings = make_settings(features=FEATURES, model={"max_images": 2})
    images = [("1", 7, vector(3)), ("1", 0, vector(1)), ("1", 2, vector(2, 0.1))]
    result = built(spark, settings, [("1", "Red mug!", ["Red", "unknown", "tea"])], images)
    [row], figures = collected(result)
    assert row["item_id"] == "1"
    assert row["item_key"] == spark.range(1).select(F.xxhash64(F.lit("1"))).first()[0]  # type: ignore[index]
    assert ids(row["text_token_ids"]) == [0, 1, 2, 3, 5, 0, 1, 2, 4]
    assert ids(row["text_token_counts"]) == [5, 4]
    # Title: of 8 trigrams two known. Colours: of 15 two; of 3 words two; of 2 bigrams none.
    assert row["out_of_vocabulary_count"] == 6 + 13 + 1 + 2
    np.testing.assert_array_equal(embeddings(row["image_embeddings"]), np.float16([vector(1), vector(2, 0.1)]))
    assert figures == {
        "tokens": 9, "out_of_vocabulary_tokens": 22, "truncated_tokens": 0, "images": 2, "images_beyond_limit": 1,
        "items_without_text": 0, "items_without_images": 0, "items_without_text_embedding": 1,
    }  # fmt: skip


@pytest.mark.fault("E5", "recovered", "texts that are null, empty, blank, lists of null")
def test_missing_texts_and_images_are_empty_never_none(spark: SparkSession, make_settings: MakeSettings) -> None:
    settings = make_settings(features=FEATURES | {"max_tokens_per_feature": 1})
    items = [("null", None, None), ("empty", "", []), ("nulls", " ", [None]), ("text", "red", None)]
    result = built(spark, settings, items, [("text", 0, vector(1))])
    found, figures = collected(result)
    rows = {row["item_id"]: row for row in found}
    for item in ("null", "empty", "nulls"):
        assert rows[item]["text_token_ids"] == rows[item]["image_embeddings"] == b""
        assert ids(rows[item]["text_token_counts"]) == [0, 0]
        assert rows[item]["out_of_vocabulary_count"] == 0
        assert rows[item]["features_hash"] == rows["null"]["features_hash"]
    assert ids(rows["text"]["text_token_ids"]) == [0]
    assert (figures["items_without_text"], figures["items_without_images"], figures["truncated_tokens"]) == (3, 3, 2)


def test_the_hash_tells_features_apart_and_ignores_the_id(spark: SparkSession, make_settings: MakeSettings) -> None:
    items = [("1", "red", None), ("2", None, ["red"]), ("3", "red", None), ("4", "RED", ["?"])]
    result = built(spark, make_settings(features=FEATURES), items, [("3", 0, vector(1))])
    hashes = {row["item_id"]: row["features_hash"] for row in feature_rows(result)}
    assert len({hashes["1"], hashes["2"], hashes["3"]}) == 3
    assert hashes["4"] == hashes["1"] == "c2109886d1d0898413fe38a0657abf21"


def test_the_embedding_of_an_items_text_is_a_feature_and_part_of_its_hash(
    spark: SparkSession, make_settings: MakeSettings
) -> None:
    one, other = (np.float16(vector(*numbers)).tobytes() for numbers in ((1,), (0, 1)))
    items = [(name, "red", None) for name in "abcd"]
    vectors = [("a", one, "lsa-1"), ("b", one, "lsa-1"), ("c", other, "lsa-1"), ("gone", one, "lsa-1")]
    result = built(spark, make_settings(features=FEATURES), items, embeddings=vectors)
    found, figures = collected(result)
    rows = {row["item_id"]: row for row in found}
    assert {name: row["text_embedding"] for name, row in rows.items()} == {"a": one, "b": one, "c": other, "d": b""}
    assert rows["a"]["features_hash"] == rows["b"]["features_hash"]
    assert len({row["features_hash"] for row in rows.values()}) == 3
    assert figures["items_without_text_embedding"] == 1


def test_a_shop_without_images(spark: SparkSession, make_settings: MakeSettings) -> None:
    settings = make_settings(features=FEATURES, inputs={"has_images": False}, model={"sequence": ["text"]})
    result = built(spark, settings, [("1", "red", None)])
    [row], figures = collected(result)
    assert row["image_embeddings"] == b""
    assert figures["items_without_images"] == 1


def test_items_without_a_usable_id_are_rejected(spark: SparkSession, make_settings: MakeSettings) -> None:
    items = [(None, "red", None), (" ", "red", None), ("1", "red", None), ("1", "blue", None), ("1", "blue", None)]
    result = built(spark, make_settings(features=FEATURES), items)
    assert reasons(result.rejected) == [
        (" ", "items", "item_id", "null_id"),
        ("1", "items", "item_id", "conflicting_item"),
        ("1", "items", "item_id", "duplicate_item"),
        (None, "items", "item_id", "null_id"),
    ]
    [row] = feature_rows(result)
    assert row["text_token_ids"] == b""  # the smallest row, blue, was kept


BAD_IMAGES = [
    ((None, 0, vector(1)), "item_id", "null_id"),
    (("1", None, vector(1)), "position", "null_position"),
    (("1", 1, None), "image_embedding", "bad_vector"),
    (("1", 1, [1.0] * 255), "image_embedding", "wrong_length"),
    (("1", 1, []), "image_embedding", "wrong_length"),
    (("1", 1, [None] * 256), "image_embedding", "bad_vector"),
    (("1", 1, vector(float("nan"))), "image_embedding", "bad_vector"),
    (("1", 1, vector(float("inf"))), "image_embedding", "bad_vector"),
    (("1", 1, vector(1e5)), "image_embedding", "bad_vector"),
    (("1", 1, vector(0)), "image_embedding", "bad_vector"),
    (("2", 0, vector(1)), "item_id", "unknown_item"),
    (("1", 0, vector(4)), "position", "duplicate_image"),
    (("1", 0, vector(5)), "position", "conflicting_image"),
    (("i" * 513, 0, vector(1)), "item_id", "long_id"),
]


def test_each_unusable_image_is_rejected_with_its_reason(spark: SparkSession, make_settings: MakeSettings) -> None:
    images = [image for image, _, _ in BAD_IMAGES] + [("1", 0, vector(4)), ("1", 9, vector(6))]
    result = built(spark, make_settings(features=FEATURES), [("1", None, None)], images)
    expected = [(image[0] and image[0][:512], "item_images", column, reason) for image, column, reason in BAD_IMAGES]
    assert reasons(result.rejected) == sorted(expected, key=str)
    [row] = feature_rows(result)
    np.testing.assert_array_equal(embeddings(row["image_embeddings"])[:, 0], [4, 6])


def test_every_image_may_be_unusable(spark: SparkSession, make_settings: MakeSettings) -> None:
    result = built(spark, make_settings(features=FEATURES), [("1", None, None)], [("1", 0, [1.0])])
    assert feature_rows(result)[0]["image_embeddings"] == b""


@pytest.mark.long
@pytest.mark.fault("C10", "recovered", "items and images in 1, 3 and 8 partitions, in two orders")
def test_partitions_do_not_matter(spark: SparkSession, make_settings: MakeSettings) -> None:
    items = [(str(n % 9), f"red mug {n}", ["tea"] * n) for n in range(12)]
    images = [(str(n % 10), n % 4, vector(n + 1)) for n in range(60)]
    outcomes = []
    for partitions in (1, 3, 8):
        order = 1 if partitions == 1 else -1
        result = built(spark, make_settings(features=FEATURES), items[::order], images[::order], partitions=partitions)
        outcomes.append([sorted(rows, key=str) for rows in (feature_rows(result), result.rejected.collect())])
    assert outcomes[0] == outcomes[1] == outcomes[2]


@given(st.lists(st.text(max_size=30), min_size=1, max_size=20))
@hypothesis_settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@pytest.mark.fault("E1", "recovered", "any Unicode text: a Spark worker and a direct call give the same ids")
@pytest.mark.fault("E4", "recovered", "the same")
def test_the_job_and_a_direct_call_give_the_same_ids(
    spark: SparkSession, make_settings: MakeSettings, texts: list[str]
) -> None:
    known = [sorted({token for text in texts for token in token_kinds(text)[kind]})[::2] for kind in range(3)]
    items = [(str(number), text, None) for number, text in enumerate(texts)]
    result = built(spark, make_settings(features=FEATURES), items, vocabulary=pack_vocabulary(*known))
    rows = {row["item_id"]: row for row in feature_rows(result)}
    for number, text in enumerate(texts):
        encoded = Tokenizer(*known).encode_column(pa.array([text]))
        assert ids(rows[str(number)]["text_token_ids"]) == encoded.ids.tolist()
        assert rows[str(number)]["out_of_vocabulary_count"] == encoded.out_of_vocabulary[0]


TWICE, TWO_IMAGES = [("1", "red", None), ("1", "red", None)], [("1", 0, vector(1)), ("2", 0, [])]


def write_inputs(
    spark: SparkSession,
    settings: Settings,
    vocabulary: list[Any],
    items: list[Any] = TWICE,
    images: list[Any] = TWO_IMAGES,
) -> None:
    spark.createDataFrame(items, ITEM).write.parquet(settings.table_uri("items"))
    spark.createDataFrame(images, IMAGE).write.parquet(settings.table_uri("item_images"))
    rows = spark.createDataFrame(vocabulary, struct_type(VOCABULARY))
    rows.write.format("delta").save(settings.table_uri("vocabulary"))
    version = TableVersion("vocabulary", settings.table_uri("vocabulary"), 0, len(vocabulary))
    write_record(settings.layout, RunRecord("build_vocabulary", VocabularyMetrics(), outputs=(version,)))
    embeddings = [("1", np.float16(vector(1)).tobytes(), "lsa-1", None)]
    uri = settings.table_uri(ITEM_TEXT_EMBEDDINGS.name)
    spark.createDataFrame(embeddings, struct_type(ITEM_TEXT_EMBEDDINGS)).write.format("delta").save(uri)
    version = TableVersion(ITEM_TEXT_EMBEDDINGS.name, uri, 0, 1)
    write_record(settings.layout, RunRecord("embed_items", ItemTextMetrics("lsa-1"), outputs=(version,)))


def test_a_run_writes_tables_figures_and_rejects(spark: SparkSession, make_settings: MakeSettings) -> None:
    settings = make_settings(features=FEATURES, max_reject_share={"item_images": 0.5})
    write_inputs(spark, settings, [("red", "char_trigram", 0, 9), ("red", "word_unigram", 1, 9)])
    spark.catalog.clearCache()  # of other jobs' runs that ended with an error
    build_item_features.run(spark, settings)
    [row] = spark.read.format("delta").load(settings.table_uri(ITEM_FEATURES.name)).collect()
    assert ids(row["text_token_ids"]) == [0, 1]
    assert embeddings(row["text_embedding"])[0, 0] == 1
    record = read_record(settings.layout, build_item_features.STAGE)
    assert record.made_with == {contracts.ITEM_TEXT: "lsa-1"}
    assert record.rejected == {"item_images: wrong_length": 1, "items: duplicate_item": 1}
    assert {version.table: version.rows for version in record.outputs} == {
        ITEM_FEATURES.name: 1, REJECTED_ITEMS.name: 2, CHANGED_ITEM_FEATURES.name: 0, ITEM_FEATURE_CHANGES.name: 0,
    }  # fmt: skip
    assert asdict(record.metrics) | {"made_by": ""} == {
        "tokens": 2, "out_of_vocabulary_tokens": 2, "truncated_tokens": 0, "images": 1, "images_beyond_limit": 0,
        "items_without_text": 0, "items_without_images": 0, "items_without_text_embedding": 0,
        "vocabulary_size": 2, "image_length": 256, "kept_rows": 0, "kept_from": "", "made_by": "",
        "vocabulary_hash": "a303fe13e7922036eecbece43c08de18",
    }  # fmt: skip
    kept = [rdd.name() for rdd in spark.sparkContext._jsc.getPersistentRDDs().values()]  # type: ignore[union-attr]
    assert [name for name in kept if "Delta Table State" not in name] == []


NAMES = [f"P{number:02}" for number in range(10)]
SOUND_ITEMS, SOUND_IMAGES = [(name, "red", None) for name in NAMES], [(name, 0, vector(1)) for name in NAMES]
CLIP = [(name, 0, [1.0] * 512) for name in NAMES]
SHOUTED = [(name.lower(), 0, vector(1)) for name in NAMES]
NAMELESS = [(None, 0, vector(1)) if n % 2 else image for n, image in enumerate(SOUND_IMAGES)]
NOT_A_NUMBER = [(name, 0, vector(float("nan"))) for name in NAMES]
VARIANTS = [("P00", "red", None), ("P00", "blue", None), ("P00", "green", None)]


@pytest.mark.fault("t09", "loud", "image vectors of 512 numbers where 256 are declared")
@pytest.mark.fault("F3", "loud", "all images NaN, half of the ids null, ids in another case, variants under one id")
@pytest.mark.parametrize(
    ("items", "images", "message"),
    [
        (SOUND_ITEMS, CLIP, r"item_images, column image_embedding: expected at most 20\.0% unusable .*found 10 of 10: "
                            r"wrong_length 10 \(such as 'P00', 'P01', 'P02'\)\. .*512 numbers in 10 images: "
                            r"model\.image_length = 512"),
        (SOUND_ITEMS, SHOUTED, r"item_images, column item_id: .*unknown_item 10 \(such as 'p00', 'p01', 'p02'\)\. .*"
                               r"10 item_ids match without case"),
        (SOUND_ITEMS, NAMELESS, r"item_images, column item_id: .*5 of 10: null_id 5.*max_reject_share\.item_images"),
        (SOUND_ITEMS, NOT_A_NUMBER, r"item_images, column image_embedding: .*bad_vector 10 \(such as 'P00'"),
        (SOUND_ITEMS[1:] + VARIANTS, SOUND_IMAGES, r"items, column item_id: expected at most 10\.0% .*found 2 of 12: "
                                                   r"conflicting_item 2 \(such as 'P00'\)\. Keep one row per product"),
    ],
)  # fmt: skip
def test_a_table_of_which_too_little_is_usable_stops_the_run(
    spark: SparkSession, make_settings: MakeSettings, items: list[Any], images: list[Any], message: str
) -> None:
    settings = make_settings(features=FEATURES)
    write_inputs(spark, settings, [("red", "word_unigram", 0, 9)], items, images)
    with pytest.raises(TableError, match=message):
        build_item_features.run(spark, settings)
    assert not Path(settings.table_uri("item_features")).exists()
    assert not Path(settings.layout.record("build_item_features")).exists()


def test_no_share_lets_a_table_pass_of_which_nothing_is_usable(
    spark: SparkSession, make_settings: MakeSettings
) -> None:
    settings = make_settings(features=FEATURES, max_reject_share={"item_images": 1.0})
    write_inputs(spark, settings, [("red", "word_unigram", 0, 9)], SOUND_ITEMS, CLIP)
    with pytest.raises(TableError, match=r"found 10 of 10: wrong_length 10") as caught:
        build_item_features.run(spark, settings)
    assert "or raise" not in str(caught.value)


def test_a_missing_column_is_named(spark: SparkSession, make_settings: MakeSettings) -> None:
    settings = make_settings()
    spark.createDataFrame([("1",)], "product string").write.parquet(settings.table_uri("items"))
    with pytest.raises(TableError, match=r"table items, column item_id: .*no such column among product"):
        build_item_features.run(spark, settings)


@pytest.mark.parametrize("vocabulary", [
    [("a", "word_unigram", 0, 1), ("b", "word_unigram", 2, 1)],
    [("a", "word_unigram", 0, 1), ("b", "word_unigram", 0, 1)],
    [("a", "word_unigram", 0, 1), ("#a#", "char_trigram", 1, 1)],
    [("a", "sentence", 0, 1)],
])  # fmt: skip
def test_a_broken_vocabulary_is_refused(spark: SparkSession, vocabulary: list[Any]) -> None:
    with pytest.raises(TableError, match="table vocabulary, column token_id"):
        packed_vocabulary(spark.createDataFrame(vocabulary, struct_type(VOCABULARY)))


def test_a_vocabulary_arrives_whole(spark: SparkSession) -> None:
    rows = [("é#中", "word_bigram", 2, 1), ("#é#", "char_trigram", 0, 1), ("é", "word_unigram", 1, 1)]
    packed = packed_vocabulary(spark.createDataFrame(rows, struct_type(VOCABULARY)))
    assert packed == pack_vocabulary(["#é#"], ["é"], ["é#中"])
    assert packed_vocabulary(spark.createDataFrame([], struct_type(VOCABULARY))) == pack_vocabulary([], [], [])
