"""One run of a job: it opens what its stage declares, and leaves a record only when it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import SparkSession

from jobs.runtime.job_run import JobRun
from schemas.code_version import code_version
from schemas.commits import OvertakenError
from schemas.errors import InputError, TableError
from schemas.lease import LeaseError
from schemas.metrics import EventCounts, ItemMetrics, QueryMetrics, TrainingTableMetrics, VocabularyMetrics
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_FEATURES, BUILD_TRAINING_TABLES, BUILD_VOCABULARY
from schemas.tables import ITEMS, QUERIES, REJECTED_ITEMS, VOCABULARY

MakeSettings = Callable[..., Settings]
TOKENS = pa.table(
    {"token": ["red"], "token_kind": ["word_unigram"], "token_id": pa.array([0], pa.int32()), "token_count": [2]}
)


def test_a_run_opens_no_table_that_its_stage_does_not_declare(spark: SparkSession, make_settings: MakeSettings) -> None:
    job = JobRun(spark, make_settings(), BUILD_VOCABULARY)
    spark.createDataFrame([("q", "search")], "query_id string, query_kind string").write.parquet(
        job.settings.table_uri(QUERIES.name)
    )
    with pytest.raises(ValueError, match=r"stage build_vocabulary reads table queries, which schemas/stages\.py"):
        job.read(QUERIES)
    with pytest.raises(ValueError, match="stage build_vocabulary writes table items"):
        job.write_arrow(pa.table({"item_id": ["a"]}), ITEMS)


def test_another_stages_table_is_read_at_the_version_that_its_record_names(
    spark: SparkSession, make_settings: MakeSettings
) -> None:
    settings = make_settings()
    with JobRun(spark, settings, BUILD_VOCABULARY) as first:
        first.write_arrow(TOKENS, VOCABULARY)
        first.metrics = VocabularyMetrics(distinct_word_unigrams=1)
    record = read_record(settings.layout, BUILD_VOCABULARY)
    assert (record.metrics.distinct_word_unigrams, record.output("vocabulary").version) == (1, 1)
    # A run that died leaves a newer version, and no record.
    JobRun(spark, settings, BUILD_VOCABULARY).write_arrow(TOKENS.slice(0, 0), VOCABULARY)
    job = JobRun(spark, settings, BUILD_ITEM_FEATURES)
    assert job.read(VOCABULARY).count() == job.row_count(VOCABULARY) == 1
    write_record(settings.layout, RunRecord("build_vocabulary", VocabularyMetrics()))
    with pytest.raises(InputError, match="expected a table written by build_vocabulary"):
        job.read(VOCABULARY)


def test_rejects_are_counted_by_reason_and_none_replace_those_of_before(
    spark: SparkSession, make_settings: MakeSettings
) -> None:
    settings = make_settings()
    columns = "item_id string, reason string, source_table string, source_column string, expected string, cure string"
    some = spark.createDataFrame([("i1", "r", "items", "c", "e", "c"), ("i2", "r", "items", "c", "e", "c")], columns)
    for rows, counts in ((some, {"items: r": 2}), (some.limit(0), {}), (some.limit(1), {"items: r": 1})):
        job = JobRun(spark, settings, BUILD_ITEM_FEATURES)
        assert job.write_rejected(rows, REJECTED_ITEMS) == sum(counts.values())
        stored = DeltaTable(settings.table_uri(REJECTED_ITEMS.name)).to_pyarrow_table()
        assert (job.rejected, len(stored)) == (counts, sum(counts.values()))


def test_a_run_that_fails_or_counts_nothing_leaves_no_record(
    spark: SparkSession, make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings()
    with pytest.raises(TableError, match="table items"), JobRun(spark, settings, BUILD_VOCABULARY) as job:
        job.read(ITEMS)
    counts_nothing = JobRun(spark, settings, BUILD_VOCABULARY)
    with pytest.raises(ValueError, match="has ended without its VocabularyMetrics"), counts_nothing:
        counts_nothing.count_input(TableVersion("items", "items", 0, 1))
    assert not list(tmp_path.rglob("build_vocabulary.json"))


@pytest.mark.fault("B3", "loud", "the stage before completes once more while a job runs")
def test_an_input_that_was_replaced_while_the_job_ran_stops_it(
    spark: SparkSession, make_settings: MakeSettings
) -> None:
    settings = make_settings()
    write = partial(write_record, settings.layout)
    uri = settings.table_uri(VOCABULARY.name)
    write(RunRecord("build_vocabulary", VocabularyMetrics(), outputs=(TableVersion(VOCABULARY.name, uri, 1, 1),)))
    overtaken = JobRun(spark, settings, BUILD_ITEM_FEATURES)
    with pytest.raises(OvertakenError, match=r"table vocabulary: expected version 1, .*; found version 2"), overtaken:
        overtaken.count_input(TableVersion(VOCABULARY.name, uri, 2, 1))
    assert not Path(settings.layout.record("build_item_features")).exists()


def test_a_job_hands_on_what_its_inputs_were_made_with(spark: SparkSession, make_settings: MakeSettings) -> None:
    settings = make_settings(tasks=[{"query_kind": "search", "engagement": "click"}])
    queries = QueryMetrics("lsa-1", 1, {"search": "lsa-1", "closeup": "pinsage-1"})
    write_record(settings.layout, RunRecord("embed_queries", queries))
    write_record(settings.layout, RunRecord("build_item_features", ItemMetrics(1, "abc"), code="0.1.0+other"))
    with JobRun(spark, settings, BUILD_TRAINING_TABLES) as job:
        job.metrics = TrainingTableMetrics({}, EventCounts(0, 0, 0, 0, 0))
    record = read_record(settings.layout, BUILD_TRAINING_TABLES)
    assert record.made_with == {"vocabulary": "abc", "space of search queries": "lsa-1"}
    assert record.code == code_version()


def read_items(spark: SparkSession, settings: Settings) -> int:
    """Reads the items once, as a whole run of a stage does; their version."""
    with JobRun(spark, settings, BUILD_VOCABULARY) as job:
        job.read(ITEMS)
        job.metrics = VocabularyMetrics()
    version = read_record(settings.layout, BUILD_VOCABULARY).inputs[0].version
    assert version is not None
    return version


@pytest.mark.fault("B7", "loud", "the newest file of an input's Delta log is lost: an older version would be read")
def test_an_input_that_went_back_to_an_older_version_is_refused(
    spark: SparkSession, make_settings: MakeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(inputs={"items": f"{tmp_path}/items"})
    for version in range(3):
        write_deltalake(f"{tmp_path}/items", pa.table({"item_id": [f"i{version}"]}), mode="append")
    assert read_items(spark, settings) == 2
    log = tmp_path / "items" / "_delta_log"
    (log / f"{2:020}.json").unlink()
    refused = r"table items, .*expected version 2 or a later one, .*found version 1 at .*--set gates\.override=true"
    with pytest.raises(TableError, match=refused):
        read_items(spark, settings)
    assert read_record(settings.layout, BUILD_VOCABULARY).inputs[0].version == 2
    assert read_items(spark, make_settings(inputs={"items": f"{tmp_path}/items"}, gates={"override": True})) == 1
    assert "gate overridden: items: expected version 2" in capsys.readouterr().out
    # Accepted once, it is what the next run starts from; and a table that was made anew is another table.
    assert read_items(spark, settings) == 1
    shutil.rmtree(tmp_path / "items")
    write_deltalake(f"{tmp_path}/items", pa.table({"item_id": ["new"]}))
    assert read_items(spark, settings) == 0


@pytest.mark.fault("F1", "loud", "one stage started twice at once on one warehouse")
def test_the_same_stage_twice_at_once_is_refused(spark: SparkSession, make_settings: MakeSettings) -> None:
    settings = make_settings()
    with JobRun(spark, settings, BUILD_VOCABULARY) as job:
        with pytest.raises(LeaseError, match="found build_vocabulary of"), JobRun(spark, settings, BUILD_VOCABULARY):
            pass
        job.metrics = VocabularyMetrics()
