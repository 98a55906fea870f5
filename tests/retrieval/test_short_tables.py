"""Short vectors as they are published: rows of one model at every instant, rolled back with the items, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.runtime.litter import unread_files
from jobs.runtime.worker_rows import write_part
from retrieval.short_tables import ShortTable, load_rotation, read_short, save_rotation, to_columns
from retrieval.short_vectors import Floats, rotations, shortened
from schemas.candidate import Candidate, keep_candidate, publish_candidate, read_candidate
from schemas.cells import to_list_column
from schemas.columns import Table
from schemas.commits import Staged, open_or_create
from schemas.errors import InputError
from schemas.metrics import ScoreMetrics, ShortMetrics
from schemas.published import Published, live, roll_back
from schemas.records import RunRecord, write_record
from schemas.settings import Settings
from schemas.short_vectors import short_vector, short_vectors_table
from schemas.stages import SCORE_CATALOG
from schemas.tables import ITEM_EMBEDDINGS, ITEM_SHORT_VECTORS, QUERY_VECTORS
from tests.retrieval.test_short_vectors import unit_vectors

MakeSettings = Callable[..., Settings]
ROWS = 40


def staged(settings: Settings, table: Table, columns: dict[str, pa.Array]) -> Staged:
    uri = settings.table_uri(table.name)
    version = open_or_create(uri, table).version()
    file = write_part([pa.RecordBatch.from_pydict(columns)], uri, 0, table)
    assert file is not None
    return Staged(table, uri, [file], version)


def candidate(settings: Settings, model: str, seed: int, forms: tuple[str, ...]) -> tuple[Candidate, Floats]:
    """What score_catalog would publish of a model, and the vectors."""
    vectors = unit_vectors(ROWS, seed)
    rotation = rotations(vectors, vectors)["items"]
    ids, models = pa.array([f"i{number}" for number in range(ROWS)]), pa.array([model] * ROWS)
    items = {"item_id": ids, "embedding": to_list_column(vectors), "model_id": models, "features_hash": ids,
             "scored_ts": pa.array([0] * ROWS, pa.timestamp("us", "UTC"))}  # fmt: skip
    answers = {"query_id": ids, "query_kind": ids, "query_vector": to_list_column(vectors), "model_id": models}
    short, known = {"item_id": ids, "model_id": models}, [short_vector(name) for name in forms]
    for form in known:
        columns = to_columns(vectors, form, rotation)
        short |= dict(zip([column.name for column in form.columns], columns, strict=True))
    metrics = ScoreMetrics(model, "float32", published_id=model)
    if forms:
        file = save_rotation(settings.layout.model(model), rotation)
        metrics = ScoreMetrics(model, "float32", published_id=model, short=ShortMetrics(forms, file, "items"))
    note = {"run_id": f"run of {model}", "as_of": "2026-03-01"}
    return Candidate(
        staged(settings, ITEM_EMBEDDINGS, items), staged(settings, QUERY_VECTORS, answers), note, metrics,
        short=staged(settings, short_vectors_table(known), short) if forms else None,
    ), vectors  # fmt: skip


def now(settings: Settings) -> Published:
    found = live(settings.layout)
    assert found is not None
    return found


def vectors_of(short: ShortTable) -> Floats:
    parts = list(short.vectors())
    assert [name for ids, _ in parts for name in ids] == [f"i{number}" for number in range(ROWS)]
    return np.concatenate([vectors for _, vectors in parts])


@pytest.mark.fault("B11", "recovered", "short vectors of another model than the live items, committed before its items")
def test_a_reader_has_short_vectors_of_the_live_model_at_every_instant(make_settings: MakeSettings) -> None:
    settings = make_settings()
    first, of_a = candidate(settings, "a", 1, ("int8:64", "float16"))
    first.make_live(settings.layout)
    short = read_short(now(settings), "int8:64")
    rotation = load_rotation(now(settings).rotation_uri)
    np.testing.assert_allclose(vectors_of(short), shortened(of_a, rotation, 64), atol=0.51 / 127)
    np.testing.assert_allclose(vectors_of(read_short(now(settings), "float16")), of_a, atol=2.0**-11)
    # A query finds the item that it is, of which the short vector says nothing but 64 codes and a scale.
    scores = short.queries(of_a) @ vectors_of(short).T
    np.testing.assert_array_equal(scores.argmax(axis=1), np.arange(ROWS))
    # Another model, of other forms: ended after its short vectors were committed, and before its items were.
    second, of_b = candidate(settings, "b", 2, ("float32:128",))
    assert second.short is not None
    second.short.commit(second.note)
    np.testing.assert_allclose(vectors_of(read_short(now(settings), "int8:64")), shortened(of_a, rotation, 64),
                               atol=0.51 / 127)  # fmt: skip
    second.make_live(settings.layout)
    assert now(settings).short_forms == ("float32:128",)
    of_128 = vectors_of(read_short(now(settings), "float32:128"))
    np.testing.assert_allclose(of_128, shortened(of_b, load_rotation(now(settings).rotation_uri), 128), atol=1e-6)
    assert [one.rows for one in now(settings).outputs] == [ROWS, ROWS, ROWS]
    # A third without short vectors has none; a rollback brings back those of the one that it goes to.
    third, _ = candidate(settings, "c", 3, ())
    third.make_live(settings.layout)
    assert now(settings).short_forms == ()
    with pytest.raises(InputError, match="short vectors int8:64: expected a version with short vectors; found no"):
        read_short(now(settings), "int8:64")
    roll_back(settings)
    np.testing.assert_array_equal(vectors_of(read_short(now(settings), "float32:128")), of_128)
    roll_back(settings)
    np.testing.assert_allclose(vectors_of(read_short(now(settings), "int8:64")), shortened(of_a, rotation, 64),
                               atol=0.51 / 127)  # fmt: skip
    with pytest.raises(
        InputError, match=r"short vectors float32:128: expected a form that it has: int8:64, float16; found no"
    ):
        read_short(now(settings), "float32:128")


def test_a_candidate_keeps_its_short_vectors_until_it_is_live(make_settings: MakeSettings) -> None:
    settings = make_settings()
    kept, of_a = candidate(settings, "a", 1, ("int8", "float32:64"))
    keep_candidate(settings.layout, kept)
    assert read_candidate(settings.layout) == kept
    write_record(settings.layout, RunRecord(SCORE_CATALOG.name, kept.metrics, outputs=kept.outputs))
    for part in kept.parts:  # files that no commit names yet
        assert unread_files(settings.layout, part.uri, 168).files == 0
    publish_candidate(settings)
    assert [one.table for one in now(settings).outputs] == [
        ITEM_EMBEDDINGS.name, QUERY_VECTORS.name, ITEM_SHORT_VECTORS.name,
    ]  # fmt: skip
    np.testing.assert_allclose(vectors_of(read_short(now(settings), "int8")), of_a, atol=0.51 / 127)


@pytest.mark.fault("D5", "loud", "the rotation of published short vectors, damaged or gone")
def test_another_rotation_than_that_of_the_publication_is_refused(make_settings: MakeSettings) -> None:
    settings = make_settings()
    candidate(settings, "a", 1, ("int8:64",))[0].make_live(settings.layout)
    file = Path(now(settings).rotation_uri)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="sha256 of; found another content"):
        read_short(now(settings), "int8:64")
    file.unlink()
    with pytest.raises(InputError, match="found no such file"):
        read_short(now(settings), "int8:64")


def test_what_was_counted_travels_in_the_pointer(make_settings: MakeSettings) -> None:
    settings = make_settings()
    one, _ = candidate(settings, "a", 1, ("int8:64",))
    one.make_live(settings.layout)
    assert asdict(now(settings).metrics) == asdict(one.metrics)
