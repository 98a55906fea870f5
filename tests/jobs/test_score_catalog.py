"""score_catalog: every task has a share of the rows, and which items share a batch follows from the files alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from itemsage_model.data.pinned_files import FilePiece, TableFiles, deal, pieces_of, pin_files
from itemsage_model.encoders.model_files import SavedModel, model_bytes
from jobs import score_catalog as job
from jobs.runtime.worker_rows import write_parts
from schemas.tables import ITEM_EMBEDDINGS
from tests.itemsage_model.factories import SPEC, write_catalog


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
