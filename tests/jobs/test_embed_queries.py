"""embed_queries: own embeddings pass at unit length, texts are embedded, everything else is rejected by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from itemsage_model.encoders.frozen_text.lsa import fit_lsa
from itemsage_model.encoders.frozen_text.stored import fit_encoder, load, load_if_saved
from itemsage_model.encoders.frozen_text.text_encoder import TextEncoder
from jobs import embed_queries
from jobs.runtime import table_io
from jobs.transforms import queries as query_transforms
from jobs.transforms.quarantine import accepted, rejected
from jobs.transforms.queries import catalog_texts, count_texts, with_verdicts
from schemas.errors import SettingsError, TableError
from schemas.records import read_record
from schemas.settings import QueryEncoderSettings, Settings
from schemas.spark import conform
from schemas.tables import ITEMS, QUERIES, QUERY_EMBEDDINGS, REJECTED_QUERIES

TITLES = ["red retrospot mug", "red retrospot teapot", "blue garden lantern"]
LONG = [3.0, 4.0] + [0.0] * 254
QUERY = "query_id string, query_kind string, text string, query_embedding array<float>, embedding_space string"
ITEM = "item_id string, title string, colors array<string>"


def queries_of(spark: SparkSession, *rows: dict[str, Any]) -> DataFrame:
    valid = {"query_id": "q", "query_kind": "search", "text": None, "query_embedding": None, "embedding_space": None}
    return conform(spark.createDataFrame([Row(**(valid | row)) for row in rows], QUERY), QUERIES)


def reasons(df: DataFrame) -> dict[str | None, str]:
    return {row["query_id"]: row["reason"] for row in rejected(df, REJECTED_QUERIES).collect()}


def test_an_embedding_passes_at_unit_length(spark: SparkSession) -> None:
    rows = queries_of(spark, {"query_embedding": LONG, "embedding_space": "pinsage-1", "text": "unused"})
    row = accepted(embed_queries.build(with_verdicts(rows), None, 1)).first()
    assert row is not None
    np.testing.assert_array_equal(row["query_embedding"][:3], np.float32([0.6, 0.8, 0]))
    assert (row["query_id"], row["embedding_space"]) == ("q", "pinsage-1")


def test_a_text_gets_the_encoders_vector(spark: SparkSession) -> None:
    encoder = fit_lsa(TITLES, vocabulary_size=1_000)
    texts = {"a": "red mug", "b": "blue", "c": "red mug"}
    rows = queries_of(spark, *[{"query_id": key, "text": text} for key, text in texts.items()])
    embedded = accepted(embed_queries.build(with_verdicts(rows), encoder, 3)).collect()
    found = {row["query_id"]: row["query_embedding"] for row in embedded}
    np.testing.assert_array_equal(np.float32([found[key] for key in texts]), encoder.encode(list(texts.values())))
    assert {row["embedding_space"] for row in embedded} == {encoder.name}


def test_rows_that_cannot_stand_are_rejected_with_a_reason(spark: SparkSession) -> None:
    named = {"embedding_space": "pinsage-1"}
    rows = queries_of(
        spark,
        {"query_id": None, "text": "red"},
        {"query_id": " ", "text": "red"},
        {"query_id": "kindless", "query_kind": None, "text": "red"},
        {"query_id": "short", "query_embedding": LONG[1:]} | named,
        {"query_id": "nan", "query_embedding": [*LONG[1:], float("nan")]} | named,
        {"query_id": "spaceless", "query_embedding": LONG},
        {"query_id": "empty", "text": " "},
    )
    verdicts = with_verdicts(rows)
    assert reasons(verdicts) == {
        None: "null_id",
        " ": "null_id",
        "kindless": "null_kind",
        "short": "not_a_vector",
        "nan": "not_a_vector",
        "spaceless": "unnamed_space",
        "empty": "no_embedding_no_text",
    }
    assert accepted(verdicts).count() == 0


def test_of_a_repeated_id_the_first_by_content_is_kept(spark: SparkSession) -> None:
    rows = queries_of(spark, {"text": "red"}, {"text": "blue"}, {"text": "red"})
    verdicts = with_verdicts(rows)
    assert [row["text"] for row in accepted(verdicts).collect()] == ["blue"]
    assert rejected(verdicts, REJECTED_QUERIES).count() == 2
    assert reasons(verdicts) == {"q": "conflicting_query"}


@pytest.mark.fault("t32", "recovered", "a bare row of a query, and one with a broken vector, beside the full one")
def test_the_fullest_sound_row_of_a_query_is_kept(spark: SparkSession) -> None:
    own = {"query_embedding": LONG, "embedding_space": "pinsage-1", "text": "red"}
    broken = own | {"query_embedding": LONG[1:], "text": "a"}
    bare = {"text": "red"}
    rows = queries_of(spark, broken, bare, {"text": " "}, own, own)
    verdicts = with_verdicts(rows)
    assert [row["query_embedding"] for row in accepted(verdicts).collect()] == [LONG]
    found = sorted(row["reason"] for row in rejected(verdicts, REJECTED_QUERIES).collect())
    assert found == ["duplicate_query", "duplicate_query", "no_embedding_no_text", "not_a_vector"]


@pytest.mark.fault("t06", "recovered", "a query's text that is no UTF-8")
@pytest.mark.fault("t22", "recovered", "a query_id of 45,000 characters")
def test_a_broken_text_or_a_long_id_rejects_one_query(spark: SparkSession) -> None:
    rows = queries_of(spark, {"query_id": "good", "text": "red"}, {"query_id": "x" * 45_000, "text": "red"})
    broken = queries_of(spark, {"query_id": "bad"}).withColumn("text", F.expr("CAST(X'43616666E9' AS STRING)"))
    verdicts = with_verdicts(rows.unionByName(broken))
    assert [row["query_id"] for row in accepted(verdicts).collect()] == ["good"]
    assert reasons(verdicts) == {"bad": "bad_text", "x" * 512: "long_id"}


@pytest.mark.long
@pytest.mark.fault("C5", "recovered", "query texts and a catalog text of 10 MB")
def test_texts_are_cut_where_an_encoder_reads_them(
    spark: SparkSession, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def fit(chosen: QueryEncoderSettings, texts: list[str]) -> TextEncoder:
        read.extend(map(len, texts))
        return fit_encoder(chosen, texts)

    monkeypatch.setattr(embed_queries, "fit_encoder", fit)
    long = "red mug " * 1_250_000
    settings = make_settings()
    write_inputs(spark, settings, {"query_id": "long", "text": long}, {"query_id": "cut", "text": long[:16_384]},
                 {"query_id": "short", "text": "red"}, titles=[*TITLES, long])  # fmt: skip
    embed_queries.run(spark, settings)
    assert max(read) == 16_384
    found = {row["query_id"]: row["query_embedding"] for row in embeddings(spark, settings)}
    assert found["long"] == found["cut"] != found["short"]
    assert read_record(settings.layout, embed_queries.STAGE).metrics.truncated_texts == 1


@pytest.mark.fault("C5", "recovered", "a catalog of long texts: what is collected of it is bounded")
def test_the_texts_that_an_encoder_is_fitted_on_are_bounded_together(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_transforms, "FIT_CHARACTERS", 25)
    items = conform(spark.createDataFrame([(f"i{n}", f"title {n}", None) for n in range(9)], ITEM), ITEMS)
    assert catalog_texts(items).count() == 3
    broken = items.withColumn("title", F.expr("CAST(X'43616666E9' AS STRING)"))
    assert catalog_texts(broken).count() == 0


def test_groups_are_bounded_by_their_characters(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = with_verdicts(queries_of(spark, *[{"query_id": f"q{n}", "text": "lamp " * 20} for n in range(4)]))
    assert count_texts(accepted(rows)) == (4, 0, 1)
    monkeypatch.setattr(query_transforms, "CHARACTERS_PER_GROUP", 100)
    assert count_texts(accepted(rows)).groups == 5


@pytest.mark.fault("t24", "loud", "queries bring embeddings, and the column embedding_space is left out")
def test_a_kind_of_which_no_query_is_usable_stops_the_run(
    spark: SparkSession, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(max_reject_share={"queries": 0.9})
    texts = [{"query_id": f"s{n}", "text": "red mug"} for n in range(8)]
    own = {"query_id": "c", "query_kind": "closeup", "query_embedding": LONG}
    write_inputs(spark, settings, *texts, own)
    queries = spark.read.parquet(settings.table_uri("queries")).drop("embedding_space").localCheckpoint()
    queries.write.mode("overwrite").parquet(settings.table_uri("queries"))
    with pytest.raises(TableError, match=r"queries, column embedding_space: expected some usable row with query_kind "
                                         r"'closeup'.*found all 1 unusable: unnamed_space 1 \(such as 'c'\)\. "
                                         r"Add the column embedding_space"):  # fmt: skip
        embed_queries.run(spark, settings)
    assert not Path(settings.table_uri("query_embeddings")).exists()
    assert load_if_saved(settings.layout.query_encoder) is None


@pytest.mark.fault("F3", "loud", "half of the queries name no id")
def test_too_many_rejected_queries_stop_the_run(spark: SparkSession, make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    rows = [{"query_id": None if n % 2 else f"q{n}", "text": "red mug"} for n in range(8)]
    write_inputs(spark, settings, *rows)
    with pytest.raises(TableError, match=r"column query_id: expected at most 20\.0% unusable rows \(max_reject_share"
                                         r"\.queries\); found 4 of 8: null_id 4"):  # fmt: skip
        embed_queries.run(spark, settings)


def test_a_text_without_a_known_word_is_rejected(spark: SparkSession) -> None:
    rows = queries_of(spark, {"query_id": "a", "text": "xyzzy"}, {"query_id": "b", "text": "red"})
    embedded = embed_queries.build(with_verdicts(rows), fit_lsa(["red", "blue"], vocabulary_size=1_000), 1)
    assert reasons(embedded) == {"a": "unknown_text"}
    assert [row["query_id"] for row in accepted(embedded).collect()] == ["b"]


def test_two_spaces_in_one_kind_are_refused(spark: SparkSession) -> None:
    own = {"query_embedding": LONG, "embedding_space": "pinsage-1"}
    closeup = {"query_kind": "closeup"}
    apart = queries_of(spark, {"query_id": "a", "text": "red"}, {"query_id": "b"} | own | closeup)
    embed_queries.check_spaces(apart, "lsa-1")
    mixed = queries_of(spark, {"query_id": "a", "text": "red"}, {"query_id": "b"} | own)
    with pytest.raises(TableError, match=r"one embedding space for all search queries; found lsa-1 and pinsage-1"):
        embed_queries.check_spaces(mixed, "lsa-1")


def test_catalog_texts_are_the_same_whatever_the_partitions(spark: SparkSession) -> None:
    rows = [(f"i{n}", f"title {n}", ["red", "blue"]) for n in range(9)] + [("blank", None, None), (None, "lost", None)]
    items = conform(spark.createDataFrame(rows, ITEM), ITEMS)
    texts = [row["text"] for row in catalog_texts(items, 5).collect()]
    shuffled = items.orderBy("title", ascending=False).repartition(4)
    assert [row["text"] for row in catalog_texts(shuffled, 5).collect()] == texts
    assert len(texts) == 5
    assert sorted(texts) == texts
    assert texts[0].endswith(" red blue")


def write_inputs(spark: SparkSession, settings: Settings, *rows: dict[str, Any], titles: list[str] = TITLES) -> None:
    items = spark.createDataFrame([(f"i{n}", title, None) for n, title in enumerate(titles)], ITEM)
    items.write.mode("overwrite").parquet(settings.table_uri("items"))
    queries_of(spark, *rows).write.mode("overwrite").parquet(settings.table_uri("queries"))


def embeddings(spark: SparkSession, settings: Settings) -> list[Row]:
    return table_io.read(spark, settings.table_uri("query_embeddings"), QUERY_EMBEDDINGS).orderBy("query_id").collect()


def test_the_job_writes_the_same_rows_whatever_the_partitions(
    spark: SparkSession, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(max_reject_share={"queries": 0.5}, rerun=True)
    rows = [{"query_id": f"q{n}", "text": title} for n, title in enumerate([*TITLES, "red lantern", "xyz", " "])]
    write_inputs(spark, settings, *rows)
    embed_queries.run(spark, settings)
    first = embeddings(spark, settings)
    items = spark.read.parquet(settings.table_uri("items")).collect()
    spark.createDataFrame(items[::-1], ITEM).repartition(3).write.mode("overwrite").parquet(settings.table_uri("items"))
    queries_of(spark, *reversed(rows)).repartition(3).write.mode("overwrite").parquet(settings.table_uri("queries"))
    embed_queries.run(spark, settings)
    assert embeddings(spark, settings) == first
    record = read_record(settings.layout, embed_queries.STAGE)
    assert [row["query_id"] for row in first] == ["q0", "q1", "q2", "q3"]
    assert record.rejected == {"queries: no_embedding_no_text": 1, "queries: unknown_text": 1}
    encoder = load(settings.layout.query_encoder)
    assert record.metrics.encoder == encoder.name == first[0]["embedding_space"]
    assert record.metrics.texts_encoded == 5
    assert record.metrics.explained_variance == pytest.approx(1.0, abs=1e-4)


def test_the_encoder_is_saved_where_an_item_has_text_whatever_the_queries_bring(
    spark: SparkSession, make_settings: Callable[..., Settings]
) -> None:
    own = {"query_embedding": LONG, "embedding_space": "searchsage-1"}
    settings = make_settings()
    write_inputs(spark, settings, own, titles=["!!"])
    embed_queries.run(spark, settings)
    assert load_if_saved(settings.layout.query_encoder) is None
    assert read_record(settings.layout, embed_queries.STAGE).metrics.encoder is None
    write_inputs(spark, settings, own)
    embed_queries.run(spark, settings)
    metrics = read_record(settings.layout, embed_queries.STAGE).metrics
    assert metrics.encoder == load(settings.layout.query_encoder).name
    assert (metrics.texts_encoded, metrics.embedding_spaces) == (0, {"search": "searchsage-1"})
    assert [row["embedding_space"] for row in embeddings(spark, settings)] == ["searchsage-1"]


def test_a_catalog_without_text_is_refused(spark: SparkSession, make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    write_inputs(spark, settings, {"text": "red"}, titles=["!!"])
    with pytest.raises(TableError, match=r"table items, column title: .* found no text holds a word"):
        embed_queries.run(spark, settings)


@pytest.mark.fault("t06", "recovered", "titles of the catalog in Latin-1: an item's other texts are used")
@pytest.mark.fault("t06", "loud", "titles of the catalog in Latin-1, and no other text")
def test_texts_of_the_catalog_in_latin_1_are_left_out_counted_and_named(
    spark: SparkSession, make_settings: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings()
    write_inputs(spark, settings, {"text": "red"})
    items = spark.createDataFrame([("i1", "", ["red", "mug"]), ("i2", "", ["blue"])], ITEM)
    broken = items.withColumn("title", F.expr("CAST(X'43616666E9' AS STRING)"))
    assert [row["text"] for row in catalog_texts(conform(broken, ITEMS)).collect()] == ["red mug", "blue"]
    broken.write.mode("overwrite").parquet(settings.table_uri("items"))
    embed_queries.run(spark, settings)
    assert "warning: texts of items that are no UTF-8 are left out: 2 in title" in capsys.readouterr().out
    assert read_record(settings.layout, embed_queries.STAGE).metrics.broken_catalog_texts == 2
    broken.drop("colors").write.mode("overwrite").parquet(settings.table_uri("items"))
    with pytest.raises(TableError, match=r"texts that are no UTF-8: 2 in title\. Write the texts as UTF-8"):
        embed_queries.run(spark, settings)


def clip_vectors(count: int, length: int = 512) -> list[list[float]]:
    return np.random.default_rng(count).standard_normal((count, length)).tolist()


def test_embeddings_of_another_length_are_projected_once_and_for_all(
    spark: SparkSession, make_settings: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings()
    clip = {"query_kind": "closeup", "embedding_space": "clip-1"}
    rows = [{"query_id": f"q{n}", "query_embedding": v} | clip for n, v in enumerate(clip_vectors(5))]
    short = {"query_id": "short", "query_embedding": LONG} | clip
    own = {"query_id": "text", "query_embedding": LONG, "embedding_space": "searchsage-1"}
    write_inputs(spark, settings, *rows, short, own)
    embed_queries.run(spark, settings)
    assert "clip-1: 512 numbers projected to 256, 100.0% of the squared length kept" in capsys.readouterr().out
    first = embeddings(spark, settings)
    found = {row["query_id"]: row for row in first}
    assert found.keys() == {"q0", "q1", "q2", "q3", "q4", "text"}
    given = np.array([row["query_embedding"] for row in rows])
    cosines = given @ given.T / np.outer(np.linalg.norm(given, axis=1), np.linalg.norm(given, axis=1))
    projected = np.array([found[row["query_id"]]["query_embedding"] for row in rows])
    assert projected.shape == (5, 256)
    np.testing.assert_allclose(projected @ projected.T, cosines, atol=1e-5)
    metrics = read_record(settings.layout, embed_queries.STAGE).metrics
    space = metrics.embedding_spaces["closeup"]
    assert space.startswith("clip-1-to-256-")
    assert {found["q0"]["embedding_space"], found["text"]["embedding_space"]} == {space, "searchsage-1"}
    assert metrics.projected_spaces == {"clip-1": 1.0}
    # Tomorrow's queries come through the same projection, so that yesterday's model still ranks them.
    write_inputs(spark, settings, *rows, *[{"query_id": f"new{n}", "query_embedding": v} | clip
                                           for n, v in enumerate(clip_vectors(9))])  # fmt: skip
    embed_queries.run(spark, settings)
    later = {row["query_id"]: row for row in embeddings(spark, settings)}
    assert later["q0"] == found["q0"]
    assert {row["embedding_space"] for row in later.values()} == {space}


def test_a_space_that_changes_its_length_is_refused(
    spark: SparkSession, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings()
    for length in (512, 768):
        rows = [{"query_id": f"q{n}", "query_embedding": v, "embedding_space": "clip-1"}
                for n, v in enumerate(clip_vectors(3, length))]  # fmt: skip
        write_inputs(spark, settings, *rows)
        if length == 512:
            embed_queries.run(spark, settings)
    with pytest.raises(TableError, match=r"expected 512 numbers.*found 768 numbers.*another embedding_space"):
        embed_queries.run(spark, settings)


def test_a_query_of_which_the_projection_keeps_nothing_is_rejected_by_name(
    spark: SparkSession, make_settings: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    """One-hot vectors of 512: half of the directions are not among the 256 that are kept."""
    settings = make_settings(max_reject_share={"queries": 0.6})
    rows = [{"query_id": f"q{n:03}", "query_kind": "closeup", "embedding_space": "hot-1",
             "query_embedding": np.eye(512)[n].tolist()} for n in range(512)]  # fmt: skip
    spaceless = {"query_id": "spaceless", "query_kind": "closeup", "query_embedding": clip_vectors(1)[0]}
    write_inputs(spark, settings, *rows, spaceless)
    embed_queries.run(spark, settings)
    found = np.array([row["query_embedding"] for row in embeddings(spark, settings)])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    rejected_count = read_record(settings.layout, embed_queries.STAGE).rejected
    assert rejected_count["queries: unnamed_space"] == 1
    assert rejected_count["queries: lost_in_projection"] == 512 - len(found) > 0
    assert "warning: hot-1 was fitted on other queries" in capsys.readouterr().out


def test_a_kept_encoder_embeds_the_queries_that_have_changed_and_no_other(
    spark: SparkSession, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    build = embed_queries.build

    def watched(verdicts: DataFrame, *others: Any) -> DataFrame:
        seen.append({row["query_id"] for row in verdicts.select("query_id").collect()})
        return build(verdicts, *others)

    monkeypatch.setattr(embed_queries, "build", watched)
    own = {"query_kind": "closeup", "query_embedding": LONG, "embedding_space": "pinsage-1"}
    rows = [{"query_id": f"q{n}", "text": f"red mug {n}"} for n in range(20)] + [{"query_id": "c", **own}]
    keep = make_settings(query_encoder={"refit": False}, max_reject_share={"queries": 0.5})
    write_inputs(spark, keep, *rows)
    embed_queries.run(spark, keep)
    fitted = read_record(keep.layout, embed_queries.STAGE).metrics.encoder
    # q0 has another text, q1 becomes one that nobody knows, q2 is gone, one is new, and so is the catalog.
    later = [
        {"query_id": "q0", "text": "blue"},
        {"query_id": "q1", "text": "xyzzy"},
        {"query_id": "new", "text": "red"},
    ]
    write_inputs(spark, keep, *later, *rows[3:], titles=[*TITLES, "a lantern of another kind"])
    embed_queries.run(spark, keep)
    assert seen[1] == {"q0", "q1", "new"}
    record = read_record(keep.layout, embed_queries.STAGE)
    assert record.metrics.encoder == fitted
    assert (record.metrics.kept_rows, record.metrics.texts_encoded) == (18, 20)
    assert record.rejected == {"queries: unknown_text": 1}
    some = embeddings(spark, keep)
    assert len(some) == record.output("query_embeddings").rows == 20
    embed_queries.run(spark, keep.model_copy(update={"rerun": True}))
    assert len(seen[2]) == 21
    assert embeddings(spark, keep) == some
    embed_queries.run(spark, make_settings(max_reject_share={"queries": 0.5}))
    assert read_record(keep.layout, embed_queries.STAGE).metrics.encoder != fitted


def test_an_encoder_that_other_settings_fitted_is_not_kept(
    spark: SparkSession, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings()
    write_inputs(spark, settings, {"query_id": "q", "text": "red"})
    embed_queries.run(spark, settings)
    with pytest.raises(SettingsError, match=r"query_encoder\.refit = false .* other settings of \[query_encoder\]"):
        embed_queries.run(spark, make_settings(query_encoder={"refit": False, "lsa_vocabulary": 999}))
