"""The export of an index: by one process, by Spark's workers, by the change feed; what stops it; what a rerun does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyspark.errors import PythonException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs import export_index
from jobs.transforms.keys import item_key
from retrieval import build_index
from retrieval.index import open_index
from retrieval.questions import questions_of
from schemas.errors import GateError, InputError, SettingsError, TableError, from_worker
from schemas.metrics import IndexMetrics
from schemas.published import live
from schemas.records import all_records, read_record
from schemas.repeats import AlreadyDone
from schemas.settings import Settings, load_settings
from schemas.stages import EXPORT_INDEX
from tests.retrieval.shop import CLICK, Shop, small_shop

MakeSettings = Callable[..., Settings]
SMALL = {"hnsw_m": 16, "ef_construction": 60, "exact_rows": 50, "queries_per_kind": 40, "selectivities": [0.5, 0.01]}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    made = small_shop(tmp_path, items=600)
    made.publish()
    return made


def settings_of(make_settings: MakeSettings, **index: object) -> Settings:
    tasks = [{"query_kind": CLICK.query_kind, "engagement": CLICK.engagement}]
    return make_settings(index=SMALL | index, tasks=tasks)


def exported(spark: SparkSession, settings: Settings) -> IndexMetrics:
    export_index.run(spark, settings)
    return read_record(settings.layout, EXPORT_INDEX).metrics


def test_it_is_built_measured_and_recorded_and_once_is_enough(
    spark: SparkSession, make_settings: MakeSettings, shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(make_settings)
    metrics = exported(spark, settings)
    assert (metrics.version, metrics.model_id, metrics.items, metrics.shards) == (0, "model-a", 600, 1)
    assert metrics.how == "built anew: there is none yet"
    assert {"all queries", "search queries", "held-out search_click", "in_stock = True"} <= set(metrics.recall)
    assert min(metrics.recall.values()) >= 0.95
    assert "recall@10" in capsys.readouterr().out
    index = open_index(settings.index_folder, version=0)
    assert len(index) == 600
    assert [read.table for read in read_record(settings.layout, EXPORT_INDEX).inputs] == [
        "item_embeddings",
        "query_vectors",
    ]
    assert [record.stage for record in all_records(settings.layout)] == ["export_index"]
    with pytest.raises(AlreadyDone):
        export_index.run(spark, settings)
    # What it is searched with changes no file; what it is built with does, and so do files that are gone.
    assert exported(spark, settings_of(make_settings, ef_search=32)).how == "by the change feed from version 0"
    assert open_index(settings.index_folder).manifest.build.ef_search == 32
    fewer = settings_of(make_settings, hnsw_m=8)
    assert exported(spark, fewer).how == "built anew: its hnsw_m: 16, and now 8"
    (Path(settings.index_folder) / open_index(settings.index_folder).manifest.shards[0].rows.path).unlink()
    again = exported(spark, fewer)
    assert "the one in use cannot be read" in again.how
    assert len(open_index(settings.index_folder)) == 600


def test_a_version_with_short_vectors_is_exported_as_any_other(
    spark: SparkSession, make_settings: MakeSettings, shop: Shop
) -> None:
    assert len(shop.publish(has_short=True).outputs) == 3
    settings = settings_of(make_settings)
    assert exported(spark, settings).items == 600
    assert len(read_record(settings.layout, EXPORT_INDEX).inputs) == 2


def test_workers_build_the_shards_of_a_catalog_that_is_too_large_for_one(
    spark: SparkSession, make_settings: MakeSettings, shop: Shop, tmp_path: Path
) -> None:
    settings = settings_of(make_settings, items_per_shard=150, folder=str(tmp_path / "elsewhere"))
    metrics = exported(spark, settings)
    assert (metrics.shards, metrics.items) == (4, 600)
    assert min(metrics.recall.values()) >= 0.95
    index = open_index(str(tmp_path / "elsewhere"))
    assert all(50 < len(shard) < 250 and shard.graph for shard in index.shards)
    queries = questions_of(shop.publish(), [CLICK], 40, ()).vectors
    ids = sorted(shop.vectors)
    scores = queries @ np.stack([shop.vectors[item_id] for item_id in ids]).T
    true = [{ids[number] for number in line} for line in np.argsort(-scores)[:, :10]]
    hits = index.search(queries, 10)
    assert np.mean([len(set(line) & one) / 10 for line, one in zip(hits.item_ids, true, strict=True)]) > 0.95
    # Which item lies in which shard follows from its id alone.
    rows = spark.createDataFrame([(item_id,) for item_id in ids], "item_id string")
    placed = rows.select("item_id", F.pmod(item_key("item_id"), F.lit(4)).alias("shard")).collect()
    for number, shard in enumerate(index.shards):
        assert shard.rows["item_id"].to_pylist() == sorted(row.item_id for row in placed if row.shard == number)


@pytest.mark.parametrize("items_per_shard", [1_000, 200])
def test_below_the_bar_nothing_is_published(
    spark: SparkSession, make_settings: MakeSettings, shop: Shop, items_per_shard: int
) -> None:
    exported(spark, settings_of(make_settings))
    before = open_index(settings_of(make_settings).index_folder).manifest
    poor = settings_of(
        make_settings, items_per_shard=items_per_shard, hnsw_m=4, ef_construction=8, ef_search=10, min_recall=0.999
    )
    with pytest.raises(
        GateError, match=r"index of version 0, recall@10: expected at least 0.999 .* of all queries"
    ) as stop:
        export_index.run(spark, poor)
    assert stop.value.exit_code == 4
    assert open_index(poor.index_folder).manifest == before
    assert len([path for path in Path(poor.index_folder).iterdir() if path.is_dir()]) == 1
    assert read_record(poor.layout, EXPORT_INDEX).metrics.recall


def test_it_follows_the_change_feed_and_is_built_anew_where_that_is_not_good_enough(
    spark: SparkSession, make_settings: MakeSettings, shop: Shop
) -> None:
    settings = settings_of(make_settings)
    exported(spark, settings)
    removed, added = shop.remove(5), shop.add(8)
    shop.publish({"removed": removed, "added": added})
    metrics = exported(spark, settings)
    assert (metrics.version, metrics.how) == (1, "by the change feed from version 0")
    assert (metrics.items, metrics.adds, metrics.tombstones) == (603, 8, 5)
    # The feed does not tell that items have moved: the certificate does.
    shop.change(300)
    shop.publish({"changed": []})
    metrics = exported(spark, settings)
    assert metrics.how.startswith("built anew: by the change feed its recall would be")
    assert (metrics.version, metrics.adds, metrics.tombstones) == (2, 0, 0)
    assert min(metrics.recall.values()) >= 0.95
    # A version of before, by its number.
    assert exported(spark, settings_of(make_settings, version=1)).how == "built anew: it holds version 2, a later one"
    assert open_index(settings.index_folder).manifest.version == 1
    with pytest.raises(InputError, match="item_embeddings, version 9: expected a version that was published: 2, 1, 0"):
        export_index.run(spark, settings_of(make_settings, version=9))


def test_bad_rows_stop_it_by_name_in_a_worker_too(spark: SparkSession, make_settings: MakeSettings, shop: Shop) -> None:
    rows = shop.rows()
    rows = rows.set_column(0, "item_id", [["item-000001", *rows["item_id"].to_pylist()[1:]]])
    shop.publish(rows=rows)
    with pytest.raises(TableError, match="expected one row an item; found 1 items with several, such as item-000001"):
        export_index.run(spark, settings_of(make_settings))
    with pytest.raises(PythonException) as stop:
        export_index.run(spark, settings_of(make_settings, items_per_shard=150))
    found = from_worker(str(stop.value))
    assert isinstance(found, TableError)
    assert found.found == "1 items with several, such as item-000001"


def test_without_a_published_version_it_says_so(spark: SparkSession, make_settings: MakeSettings) -> None:
    with pytest.raises(InputError, match="item_embeddings: expected a published version; found none"):
        export_index.run(spark, settings_of(make_settings))


def test_the_index_may_not_lie_outside_of_the_allowed_roots(tmp_path: Path) -> None:
    file = tmp_path / "shop.toml"
    file.write_text(
        f'[warehouse]\nuri = "{tmp_path}/warehouse"\n[dates]\nas_of = 2026-03-01\ntrain_days = 20\ntest_days = 7\n'
        f'[security]\nallowed_roots = ["{tmp_path}"]\n[index]\nfolder = "/var/index"\n'
    )
    with pytest.raises(SettingsError, match=r"index.folder: expected a place below one of security.allowed_roots"):
        load_settings(file)


def test_what_a_build_counts_is_what_it_names(shop: Shop, make_settings: MakeSettings, tmp_path: Path) -> None:
    found = live(shop.warehouse)
    assert found is not None
    draft = build_index.describe(found, build_index.BuildSettings())
    with pytest.raises(InputError, match="expected 600 rows, as the commit of version 0 says; found 0"):
        build_index.with_shards(replace(draft, items=600), [])
