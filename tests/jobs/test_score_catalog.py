"""score_catalog: every task has a share of the rows, and which items share a batch follows from the files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from itemsage_model.data.feature_cells import unpack_items
from itemsage_model.data.pinned_files import FilePiece, TableFiles, deal, pieces_of, pin_files
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import SavedModel, model_bytes
from itemsage_model.serving.frozen_vectors import Replacement
from itemsage_model.serving.query_vectors import adapt_queries
from itemsage_model.serving.scorer import Scorer, batch_function, load_once
from itemsage_model.serving.selection import Selection
from jobs import score_catalog as job
from jobs.runtime.job_run import JobRun
from jobs.runtime.worker_rows import write_parts
from jobs.transforms.keys import query_key
from schemas.cells import to_list_column
from schemas.elements import FEATURE_CELLS
from schemas.errors import InputError
from schemas.metrics import TrainMetrics, ValidateMetrics, Verdict
from schemas.records import RunRecord, write_record
from schemas.stages import SCORE_CATALOG
from schemas.tables import FROZEN_ALL, FROZEN_UNSEEN, ITEM_EMBEDDINGS, QUERY_VECTORS
from tests.itemsage_model.factories import FULL_SPEC, SPEC, write_catalog


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=80), st.integers(1, 20))
def test_no_task_is_empty_and_none_has_much_more_than_its_share(sizes: list[int], tasks: int) -> None:
    pieces = [FilePiece(f"part-{number}", None, size) for number, size in enumerate(sizes)]
    dealt = deal(pieces, tasks)
    assert sorted(piece.uri for task in dealt for piece in task) == sorted(piece.uri for piece in pieces)
    rows = [sum(piece.rows for piece in task) for task in dealt]
    assert len(dealt) == min(tasks, len(sizes))
    assert min(rows) > 0
    assert max(rows) <= sum(sizes) / len(dealt) + max(sizes)


def test_large_files_are_cut_between_row_groups_and_small_ones_are_not(tmp_path: Path) -> None:
    write_catalog(tmp_path / "item_features", items=50, files=2, row_group_rows=4)
    files = pin_files("item_features", str(tmp_path / "item_features"))
    assert [(piece.row_groups, piece.rows) for piece in pieces_of(files, 25)] == [(None, 25), (None, 25)]
    cut = pieces_of(files, 10)
    assert [(piece.row_groups, piece.rows) for piece in cut[:3]] == [((0, 1, 2), 12), ((3, 4, 5), 12), ((6,), 1)]
    assert {piece.uri for piece in cut} == set(files.uris)
    assert sum(piece.rows for piece in cut) == 50


@pytest.mark.parametrize("rows_per_task", [3, 16_384])
def test_the_rows_are_the_same_however_many_tasks_make_them(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_task: int
) -> None:
    write_catalog(tmp_path / "item_features", items=30, files=2, row_group_rows=2)
    monkeypatch.setattr(job, "_ROWS_PER_TASK", rows_per_task)
    files: TableFiles = pin_files("item_features", str(tmp_path / "item_features"))
    weights = model_bytes(SPEC.build(seed=1))
    model = SavedModel("model", weights, SPEC, {})
    constants = {"model_id": "model", "scored_ts": np.datetime64("2026-03-01", "us").item()}
    (tmp_path / "out").mkdir()
    rows = job.build(spark, files, model, constants, 8, "float32")
    written = write_parts(rows, str(tmp_path / "out"), ITEM_EMBEDDINGS)
    # As many tasks as the session has slots, or as the rows ask for: each wrote a file, so none was idle.
    assert len(written) == (8 if rows_per_task == 3 else 2)
    found = pa.concat_tables(
        pa.parquet.read_table(tmp_path / "out" / path) for path in written["path"].to_pylist()
    ).sort_by("item_id")
    assert found["item_id"].to_pylist() == sorted(f"i{number}" for number in range(30))
    norms = np.linalg.norm(np.array(found["embedding"].to_pylist()), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


def test_with_all_parts_workers_and_evaluation_give_what_a_direct_call_gives(
    spark: SparkSession, tmp_path: Path
) -> None:
    write_catalog(tmp_path / "item_features", items=30, files=2, row_group_rows=2)
    tower = FULL_SPEC.build(seed=1)
    tower.remember(torch.arange(1000, 1006))
    weights = model_bytes(tower)
    features = DeltaTable(tmp_path / "item_features").to_pyarrow_table().combine_chunks().sort_by("item_id")
    items = unpack_items("item_features", {name: features[name] for name in FEATURE_CELLS}, FULL_SPEC.elements)
    direct = Scorer(weights, FULL_SPEC).score(items, features["item_key"].to_numpy())

    files = pin_files("item_features", str(tmp_path / "item_features"))
    constants = {"model_id": "model", "scored_ts": np.datetime64("2026-03-01", "us").item()}
    rows = job.build(spark, files, SavedModel("model", weights, FULL_SPEC, {}), constants, 8, "float32")
    (tmp_path / "out").mkdir()
    written = write_parts(rows, str(tmp_path / "out"), ITEM_EMBEDDINGS)["path"].to_pylist()
    published = pa.concat_tables(pa.parquet.read_table(tmp_path / "out" / path) for path in written).sort_by("item_id")
    np.testing.assert_allclose(np.array(published["embedding"].to_pylist()), direct, atol=1e-5)

    # As jobs/evaluation/candidates.py scores the untrained model.
    score = batch_function(("item_key",), {"untrained": lambda batch: load_once(weights, FULL_SPEC).score_batch(batch)})
    scored = pa.Table.from_batches(score(features.to_batches()))
    np.testing.assert_allclose(np.array(scored["untrained"].to_pylist()), direct, atol=1e-5)


def query_embeddings() -> pa.Table:
    """Queries of two kinds, mixed, and one of a kind that no task has."""
    random = np.random.default_rng(1)
    vectors = random.normal(size=(9, 256)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kinds = ["search", "closeup", "closeup", "search", "voice", "search", "closeup", "search", "search"]
    return pa.table(
        {"query_id": [f"q{i}" for i in range(9)], "query_kind": kinds, "query_embedding": to_list_column(vectors)}
    )


@pytest.mark.parametrize("spec", [SPEC, FULL_SPEC], ids=["frozen", "adapted"])
def test_query_vectors_are_the_queries_of_the_tasks_kinds_as_adapt_queries_has_them(
    spark: SparkSession, tmp_path: Path, spec: ItemTowerSpec
) -> None:
    tower, queries = spec.build(seed=1), query_embeddings()
    hashed = spark.createDataFrame(queries).select(query_key("query_id").alias("query_key")).toArrow()
    keys = hashed["query_key"].to_numpy()
    if tower.query_adapter is not None:
        torch.manual_seed(2)
        tower.query_adapter.weight.data.normal_(std=0.1)
        tower.query_adapter.identity.table.data.normal_()
        tower.remember(torch.tensor([1000]), torch.from_numpy(keys[:4]))
    model = SavedModel("model-7", model_bytes(tower), spec, {})
    rows = job.build_queries(spark.createDataFrame(queries), model, {"search", "closeup"})
    written = write_parts(rows, str(tmp_path), QUERY_VECTORS)["path"].to_pylist()
    found = pa.concat_tables(pa.parquet.read_table(tmp_path / path) for path in written).sort_by("query_id")
    assert tuple(found.schema.names) == QUERY_VECTORS.column_names
    assert set(found["model_id"].to_pylist()) == {"model-7"}
    asked = [
        row | {"key": key} for row, key in zip(queries.to_pylist(), keys, strict=True) if row["query_kind"] != "voice"
    ]
    assert found["query_id"].to_pylist() == [row["query_id"] for row in asked]
    for row, expected in zip(found.to_pylist(), asked, strict=True):
        frozen = np.array([expected["query_embedding"]], np.float32)
        assert row["query_kind"] == expected["query_kind"]
        key = np.array([expected["key"]])
        adapted = adapt_queries(model, row["query_kind"], frozen, key)
        by_map = adapt_queries(model, row["query_kind"], frozen, key + 1)
        assert np.allclose(adapted, by_map) == (spec is SPEC or expected["key"] not in keys[:4])
        assert np.array_equal(adapted, frozen) == (spec is SPEC)
        np.testing.assert_allclose([row["query_vector"]], adapted, atol=1e-6)


def test_a_kind_that_the_adapter_was_not_trained_on_is_refused_before_any_work(spark: SparkSession) -> None:
    model = SavedModel("model", model_bytes(FULL_SPEC.build()), FULL_SPEC, {})
    with pytest.raises(InputError, match=r"expected one trained on voice queries; found one trained on closeup"):
        job.build_queries(spark.createDataFrame(query_embeddings()), model, {"search", "voice"})


@pytest.mark.parametrize("keeps_trained", [True, False], ids=["unseen", "all"])
def test_a_fallback_publishes_exactly_the_frozen_vectors_of_those_items(
    spark: SparkSession, tmp_path: Path, keeps_trained: bool
) -> None:
    write_catalog(tmp_path / "item_features", items=30, files=2, row_group_rows=2)
    features = DeltaTable(tmp_path / "item_features").to_pyarrow_table().sort_by("item_id")
    cells, keys = features["text_embedding"].to_pylist(), features["item_key"].to_numpy()
    assert any(cells)
    assert not all(cells)
    trained = keys[::3] if keeps_trained else np.empty(0, np.int64)
    model = SavedModel("model", model_bytes(SPEC.build(seed=1)), SPEC, {})
    constants = {"model_id": "model", "scored_ts": np.datetime64("2026-03-01", "us").item()}
    files = pin_files("item_features", str(tmp_path / "item_features"))
    found = []
    for name, replacement in (("own", None), ("out", Replacement(np.sort(trained) if keeps_trained else None))):
        (tmp_path / name).mkdir()
        rows = job.build(spark, files, model, constants, 8, "float32", Selection(frozen=replacement))
        paths = write_parts(rows, str(tmp_path / name), ITEM_EMBEDDINGS)["path"].to_pylist()
        found.append(
            pa.concat_tables(pa.parquet.read_table(tmp_path / name / path) for path in paths).sort_by("item_id")
        )
    own, published = (np.array(table["embedding"].to_pylist(), np.float32) for table in found)
    for row, cell in enumerate(cells):
        if cell and keys[row] not in trained:
            frozen = np.frombuffer(cell, "<f2").astype(np.float32)
            np.testing.assert_allclose(published[row], frozen / np.linalg.norm(frozen), atol=1e-6)
            assert np.abs(published[row] - own[row]).max() > 0.01
        else:
            np.testing.assert_array_equal(published[row], own[row])


def test_frozen_items_are_compared_with_frozen_queries_under_an_id_of_their_own(
    spark: SparkSession, tmp_path: Path
) -> None:
    tower = FULL_SPEC.build(seed=1)
    torch.nn.init.normal_(tower.query_adapter.weight, std=0.1)
    model = SavedModel("model-7", model_bytes(tower), FULL_SPEC, {})
    queries = query_embeddings()
    frozen = {row["query_id"]: row["query_embedding"] for row in queries.to_pylist()}
    for fallback, identity in ((FROZEN_ALL, "model-7-frozen-all"), (FROZEN_UNSEEN, "model-7-frozen-unseen")):
        (tmp_path / fallback).mkdir()
        rows = job.build_queries(spark.createDataFrame(queries), model, {"search", "closeup"}, fallback)
        paths = write_parts(rows, str(tmp_path / fallback), QUERY_VECTORS)["path"].to_pylist()
        found = pa.concat_tables(pa.parquet.read_table(tmp_path / fallback / path) for path in paths).to_pylist()
        assert {row["model_id"] for row in found} == {identity}
        same = [np.allclose(row["query_vector"], frozen[row["query_id"]], atol=1e-6) for row in found]
        assert all(same) if fallback == FROZEN_ALL else not any(same)


BELOW = Verdict("closeup_click", "all", "bm25", 0.1, 0.2, -0.12, -0.08)


def recorded(settings: Any, *, verdicts_on: str, gate_then: str = "fallback") -> None:
    trained = TrainMetrics("m", "/models/m", "v", validated_model_uri="/models/fitted")
    write_record(settings.layout, RunRecord("train", trained))
    found = ValidateMetrics(verdicts_on, "recall@10", (BELOW,))
    write_record(settings.layout, RunRecord("validate", found, settings={"floor": {"gate": gate_then}}))


@pytest.mark.fault("floor", "loud", "a model below a rival on the validation window, with floor.gate = refuse")
def test_the_floor_refuses_or_warns_or_is_off(
    spark: SparkSession, make_settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(make_settings(), verdicts_on="m")
    with pytest.raises(
        InputError, match=r"floor: .*closeup_click, all pairs: recall@10 of 0\.1000 is below bm25 with 0\.2"
    ):
        job.floor_of(JobRun(spark, make_settings(floor={"gate": "refuse"}), SCORE_CATALOG))
    decision = job.floor_of(JobRun(spark, make_settings(), SCORE_CATALOG))
    assert decision.fallback == ""
    assert "floor: closeup_click, all pairs: bm25 stays better by 0.1000" in capsys.readouterr().out
    off = job.floor_of(JobRun(spark, make_settings(floor={"gate": "off"}), SCORE_CATALOG))
    assert off.lines == ('not compared with simple rivals: floor.gate is "off"',)


@pytest.mark.fault("floor", "loud", "verdicts of validate on another model than the one to be published")
def test_verdicts_on_another_model_or_of_a_run_without_the_gate_are_refused(
    spark: SparkSession, make_settings: Any
) -> None:
    recorded(make_settings(), verdicts_on="older")
    with pytest.raises(InputError, match=r"expected verdicts on m, .*found verdicts on older\. Run validate again"):
        job.floor_of(JobRun(spark, make_settings(), SCORE_CATALOG))
    recorded(make_settings(), verdicts_on="m", gate_then="off")
    with pytest.raises(InputError, match=r'found a run with floor\.gate = "off"\. Run validate again'):
        job.floor_of(JobRun(spark, make_settings(), SCORE_CATALOG))
