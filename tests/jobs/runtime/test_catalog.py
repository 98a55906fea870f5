"""Tables by name through Spark's catalog: read whole, registered when written, never confused with another table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession

from jobs.runtime import catalog
from jobs.runtime.job_run import JobRun
from pipeline import doctor, resolve_names
from schemas.arrow import arrow_schema
from schemas.commits import open_or_create
from schemas.errors import InputError, TableError
from schemas.metrics import NoMetrics, VocabularyMetrics
from schemas.names import locate
from schemas.records import read_record
from schemas.repeats import AlreadyDone
from schemas.settings import Settings
from schemas.stages import BUILD_VOCABULARY, MAKE_DEMO_WORLD
from schemas.tables import ITEMS, QUERY_VECTORS, VOCABULARY

MakeSettings = Callable[..., Settings]

ITEM_ROWS = [("p1", "red lamp"), ("p2", "blue chair"), ("p3", "green table")]
TOKENS = pa.table(
    {"token": ["red"], "token_kind": ["word_unigram"], "token_id": pa.array([0], pa.int32()), "token_count": [2]}
)


@pytest.fixture
def shop(spark: SparkSession) -> Iterator[str]:
    """A schema of its own in Spark's catalog."""
    name = f"shop_{uuid4().hex[:8]}"
    spark.sql("CREATE SCHEMA IDENTIFIER(:name)", {"name": name})
    yield f"spark_catalog.{name}"
    spark.sql("DROP SCHEMA IDENTIFIER(:name) CASCADE", {"name": name})


def save(spark: SparkSession, name: str, kind: str, partition: str = "") -> str:
    """Save the items as a managed table; returns where the catalog has put it."""
    rows = spark.createDataFrame(ITEM_ROWS, "item_id string, title string")
    writer = rows.write.format(kind).mode("overwrite")
    (writer.partitionBy(partition) if partition else writer).saveAsTable(name)
    found = catalog.find(spark, name)
    assert found is not None
    assert found.format == kind
    return found.uri


def count_words(spark: SparkSession, settings: Settings) -> list[str]:
    """One run of a stage that reads the items; returns their titles."""
    with JobRun(spark, settings, BUILD_VOCABULARY) as job:
        titles = sorted(row["title"] for row in job.read(ITEMS).collect())
        job.write_arrow(TOKENS, VOCABULARY)
        job.metrics = VocabularyMetrics()
    return titles


@pytest.mark.parametrize(
    ("kind", "partition"), [("delta", ""), ("parquet", ""), ("parquet", "item_id"), ("delta", "item_id")]
)
def test_an_input_is_read_by_its_name_and_counted_at_its_place(
    spark: SparkSession, make_settings: MakeSettings, shop: str, kind: str, partition: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    name = f"{shop}.items"
    place = save(spark, name, kind, partition)
    settings = make_settings(inputs={"items": name})
    assert count_words(spark, settings) == sorted(title for _, title in ITEM_ROWS)
    read = read_record(settings.layout, BUILD_VOCABULARY).inputs[0]
    assert (read.uri, read.rows, read.version) == (place, 3, 0 if kind == "delta" else None)
    assert f"read items ({name}): {kind.title()}" in capsys.readouterr().out
    assert locate(name, settings.layout) == place
    with pytest.raises(AlreadyDone):
        count_words(spark, settings)


def test_a_name_without_its_catalog_and_with_backticks(
    spark: SparkSession, make_settings: MakeSettings, shop: str
) -> None:
    schema = shop.partition(".")[2]
    save(spark, f"{schema}.`items`", "parquet")
    assert len(count_words(spark, make_settings(inputs={"items": f"{schema}.`items`"}))) == 3


def test_a_name_that_is_that_of_another_table_now_is_read_anew(
    spark: SparkSession, make_settings: MakeSettings, shop: str, tmp_path: Path
) -> None:
    name = f"{shop}.items"
    spark.catalog.createTable(name, path=save(spark, f"{shop}.before", "delta"), source="delta")
    settings = make_settings(inputs={"items": name})
    count_words(spark, settings)
    spark.sql("DROP TABLE IDENTIFIER(:name)", {"name": name})
    write_deltalake(f"{tmp_path}/else", pa.table({"item_id": ["p9"], "title": ["lamp of another shop"]}))
    spark.catalog.createTable(name, path=f"{tmp_path}/else", source="delta")
    assert count_words(spark, settings) == ["lamp of another shop"]


def view(spark: SparkSession, name: str, tmp_path: Path) -> None:
    save(spark, f"{name}_stored", "delta")
    spark.sql("CREATE VIEW IDENTIFIER(:name) AS SELECT 'p1' AS item_id, 'lamp' AS title", {"name": name})


def csv(spark: SparkSession, name: str, tmp_path: Path) -> None:
    spark.createDataFrame(ITEM_ROWS, "item_id string, title string").write.format("csv").saveAsTable(name)


def nothing(spark: SparkSession, name: str, tmp_path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (view, "expected a Delta or Parquet table; found a view, or a table without files of its own"),
        (csv, "expected a Delta or Parquet table; found csv"),
        (nothing, r"expected a table in Spark's catalog; found none\. Correct inputs\.items\. .* write \./ before it"),
    ],
)
def test_what_has_no_files_of_its_own_is_refused(
    spark: SparkSession, make_settings: MakeSettings, shop: str, tmp_path: Path,
    make: Callable[[SparkSession, str, Path], None], expected: str,
) -> None:  # fmt: skip
    make(spark, f"{shop}.items", tmp_path)
    with pytest.raises(InputError, match=rf"table {shop}\.items: {expected}"):
        count_words(spark, make_settings(inputs={"items": f"{shop}.items"}))


def test_a_catalog_that_spark_does_not_know_is_refused(spark: SparkSession, make_settings: MakeSettings) -> None:
    with pytest.raises(InputError, match=r"table nowhere\.shop\.items: expected a table .*give Spark the catalog"):
        count_words(spark, make_settings(inputs={"items": "nowhere.shop.items"}))


def test_a_catalog_that_does_not_answer_is_no_fault_of_the_settings() -> None:
    class Down:
        @property
        def catalog(self) -> Any:
            raise AnalysisException(
                "Unable to instantiate org.apache.hadoop.hive.ql.metadata.SessionHiveMetaStoreClient"
            )

    with pytest.raises(AnalysisException, match="Unable to instantiate"):  # exit code 1: a retry may help
        catalog.find(cast(SparkSession, Down()), "spark_catalog.shop.items")


def test_rows_that_the_catalog_does_not_show_are_not_read_in_silence(
    spark: SparkSession, make_settings: MakeSettings, shop: str, tmp_path: Path
) -> None:
    name = f"{shop}.items"
    place = save(spark, name, "parquet", partition="item_id")
    # A partition that nobody has registered: Spark's readers by name do not see it.
    (unknown := Path(place) / "item_id=p9").mkdir()
    (known,) = (Path(place) / "item_id=p1").glob("*.parquet")
    (unknown / known.name).write_bytes(known.read_bytes())
    refused = rf"expected the 4 rows of the files at {place}, the place of {name}; found 3 rows by that name\. Register"
    with pytest.raises(TableError, match=refused):
        count_words(spark, make_settings(inputs={"items": name}))


def test_doctor_and_its_like_need_no_spark_once_a_name_is_written_down(
    spark: SparkSession, make_settings: MakeSettings, shop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(inputs={"items": f"{shop}.items"})
    place = save(spark, f"{shop}.items", "delta")
    assert doctor.examine(settings) == 3
    assert f"cannot be read at {shop}.items: table {shop}.items: expected its place" in capsys.readouterr().out
    resolve_names.resolve(spark, settings)
    assert f"items: {shop}.items at {place}" in capsys.readouterr().out
    assert doctor.examine(settings) == 3
    assert f"ok    table items: 2 columns; 3 rows looked at, {place}" in capsys.readouterr().out


def test_a_place_outside_of_the_allowed_roots_is_refused_whatever_its_name(
    spark: SparkSession, make_settings: MakeSettings, shop: str, tmp_path: Path
) -> None:
    place = save(spark, f"{shop}.items", "delta")
    within = {"inputs": {"items": f"{shop}.items"}, "security": {"allowed_roots": (str(tmp_path),)}}
    with pytest.raises(InputError, match=rf"inputs\.items: expected a place below .*allowed_roots.* found {place}\."):
        count_words(spark, make_settings(**within))
    within["security"] = {"allowed_roots": (str(tmp_path), place)}
    assert len(count_words(spark, make_settings(**within))) == 3


# ---------------------------------------------------------------- our own tables


def by_name(make_settings: MakeSettings, shop: str, **sections: object) -> Settings:
    settings = make_settings(**sections)
    warehouse = settings.warehouse.model_copy(update={"name": f"{shop}_made"})
    return settings.model_copy(update={"warehouse": warehouse})


@pytest.fixture
def made(spark: SparkSession, make_settings: MakeSettings, shop: str) -> Iterator[Settings]:
    """A warehouse whose schema is made by the first stage; the items have been read by it."""
    save(spark, f"{shop}.items", "delta")
    settings = by_name(make_settings, shop, inputs={"items": f"{shop}.items"})
    count_words(spark, settings)
    yield settings
    spark.sql("DROP SCHEMA IF EXISTS IDENTIFIER(:name) CASCADE", {"name": settings.warehouse.name})


def test_what_a_stage_writes_has_a_name_and_no_commit_more(spark: SparkSession, made: Settings) -> None:
    place = made.layout.table("vocabulary")
    assert spark.table(f"{made.warehouse.name}.vocabulary").collect()[0]["token"] == "red"
    assert DeltaTable(place).version() == read_record(made.layout, BUILD_VOCABULARY).output("vocabulary").version
    found = catalog.find(spark, f"{made.warehouse.name}.vocabulary")
    assert (found.uri, found.format) == (place, "delta")  # type: ignore[union-attr]


def test_what_python_has_written_gets_its_name_from_the_next_job(spark: SparkSession, made: Settings) -> None:
    open_or_create(made.layout.table("query_vectors"), QUERY_VECTORS)
    open_or_create(made.layout.table("of_somebody"), QUERY_VECTORS)
    assert not spark.catalog.tableExists(f"{made.warehouse.name}.query_vectors")
    count_words(spark, made.model_copy(update={"rerun": True}))
    assert spark.table(f"{made.warehouse.name}.query_vectors").count() == 0
    assert not spark.catalog.tableExists(f"{made.warehouse.name}.of_somebody")


def test_dropping_a_name_loses_no_row(spark: SparkSession, made: Settings) -> None:
    spark.sql("DROP TABLE IDENTIFIER(:name)", {"name": f"{made.warehouse.name}.vocabulary"})
    assert DeltaTable(made.layout.table("vocabulary")).to_pyarrow_table().num_rows == 1
    count_words(spark, made.model_copy(update={"rerun": True}))
    assert spark.table(f"{made.warehouse.name}.vocabulary").count() == 1


def test_a_name_that_is_taken_stops_the_stage_before_it_begins(
    spark: SparkSession, made: Settings, tmp_path: Path
) -> None:
    other = made.warehouse.model_copy(update={"uri": str(tmp_path / "other")})
    place = made.layout.table("vocabulary")
    refused = rf"expected the name of what lies at {other.uri}/vocabulary; found that of a table at {place}\. Drop it"
    with pytest.raises(InputError, match=refused):
        count_words(spark, made.model_copy(update={"warehouse": other}))
    assert not Path(other.uri, "vocabulary").exists()


def test_inputs_that_a_job_makes_are_registered_under_the_names_that_the_settings_give_them(
    spark: SparkSession, make_settings: MakeSettings, shop: str
) -> None:
    settings = make_settings(inputs={"items": f"{shop}.items"})
    stage = replace(MAKE_DEMO_WORLD, writes=(ITEMS,))
    for title in ("lamp", "chair"):  # made anew, it is the same table
        with JobRun(spark, settings, stage) as job:
            rows = [{"item_id": "p1", "title": title}]
            job.write_arrow(pa.Table.from_pylist(rows, schema=arrow_schema(ITEMS)), ITEMS)
            job.metrics = NoMetrics()
        assert [row["title"] for row in spark.table(f"{shop}.items").collect()] == [title]
        settings = settings.model_copy(update={"rerun": True})
    assert count_words(spark, settings) == ["chair"]
    save(spark, f"{shop}.taken", "parquet")
    taken = make_settings(inputs={"items": f"{shop}.taken"})
    with (
        pytest.raises(InputError, match="expected no table, or a Delta table; found parquet"),
        JobRun(spark, taken, stage),
    ):
        pass


def test_records_hold_names_and_places_and_nothing_else_of_the_catalog(made: Settings) -> None:
    record = json.loads(Path(made.layout.record("build_vocabulary")).read_text())
    assert record["settings"]["inputs"]["items"] == made.inputs.items
    assert record["outputs"][0]["uri"] == "vocabulary"


@pytest.fixture
def second(spark: SparkSession) -> str:
    """A second catalog plugin, of which Spark knows no more than its class: it finds the tables of the first."""
    spark.conf.set("spark.sql.catalog.second", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
    catalogs = spark._jsparkSession.sessionState().catalogManager()
    catalogs.catalog("second").setDelegateCatalog(catalogs.v2SessionCatalog())
    return "second"


def test_another_catalog_than_sparks_own_is_read_and_written_as_well(
    spark: SparkSession, make_settings: MakeSettings, shop: str, second: str
) -> None:
    schema = f"{second}.{shop.partition('.')[2]}"
    place = save(spark, f"{schema}.items", "delta")
    settings = by_name(make_settings, schema, inputs={"items": f"{schema}.items"})
    try:
        assert len(count_words(spark, settings)) == 3
        assert read_record(settings.layout, BUILD_VOCABULARY).inputs[0].uri == place
        assert spark.table(f"{settings.warehouse.name}.vocabulary").count() == 1
        assert count_words(spark, settings.model_copy(update={"rerun": True}))  # the name is there, and is ours
    finally:
        spark.sql("DROP SCHEMA IF EXISTS IDENTIFIER(:name) CASCADE", {"name": settings.warehouse.name})
