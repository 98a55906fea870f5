"""Short forms of vectors: how far they are off at most, and that a prefix after the rotation keeps what it can."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.short_tables import from_columns, to_columns
from retrieval.short_vectors import Floats, from_int8, rotations, short_queries, shortened, to_float16, to_int8
from schemas.arrow import conform_batch
from schemas.short_vectors import ShortVector, short_vector, short_vectors_table

FORMS = ("float16", "int8", "float32:128", "float16:64", "int8:64", "int8:8")


def unit_vectors(rows: int, seed: int = 1, spread: float = 1.0) -> Floats:
    """Vectors of unit length; the larger the spread, the more some numbers of each stand out."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(rows, 256)) * np.exp(spread * random.normal(size=(rows, 256)))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(0, 1 << 30), st.floats(0, 4))
def test_no_number_of_int8_is_off_by_more_than_half_its_scale(seed: int, spread: float) -> None:
    vectors = unit_vectors(7, seed, spread)
    codes, scales = to_int8(vectors)
    assert (codes.dtype, scales.dtype) == (np.int8, np.float32)
    assert codes.min() >= -127
    np.testing.assert_array_equal(np.abs(codes).max(axis=1), 127)
    np.testing.assert_allclose(scales, np.abs(vectors).max(axis=1) / 127, rtol=1e-6)
    off = np.abs(from_int8(codes, scales) - vectors)
    assert (off <= 0.5 * scales[:, None] * (1 + 1e-4)).all()
    assert off.max() > 0


def test_a_vector_of_zeros_stays_one() -> None:
    codes, scales = to_int8(np.zeros((2, 8), np.float32))
    assert (scales > 0).all()
    np.testing.assert_array_equal(from_int8(codes, scales), 0)


@given(st.integers(0, 1 << 30), st.floats(0, 4))
def test_no_number_of_float16_is_off_by_more_than_its_last_bit(seed: int, spread: float) -> None:
    vectors = unit_vectors(7, seed, spread)
    off = np.abs(to_float16(vectors).astype(np.float32) - vectors)
    assert (off <= np.maximum(np.abs(vectors) * 2.0**-11, 2.0**-25)).all()


def test_a_rotation_changes_no_dot_product_and_keeps_what_lies_in_few_directions() -> None:
    random = np.random.default_rng(3)
    directions = np.linalg.qr(random.normal(size=(256, 16)))[0]
    items = (random.normal(size=(500, 16)) @ directions.T).astype(np.float32)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    queries = unit_vectors(400, 4)
    found = rotations(items, queries)
    assert list(found) == ["both", "items", "last_first"]
    for name, rotation in found.items():
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(256), atol=1e-5)
        np.testing.assert_array_equal(rotation, rotations(items, queries)[name])
        whole = shortened(queries, rotation, 256) @ shortened(items, rotation, 256).T
        np.testing.assert_allclose(whole, queries @ items.T, atol=1e-5)
    # Whatever lies outside of the items' directions says nothing about them: 16 numbers are as good as 256.
    for name in ("both", "items"):
        short = shortened(queries, found[name], 16) @ shortened(items, found[name], 16).T
        np.testing.assert_allclose(short, queries @ items.T, atol=1e-3)
    assert np.abs(queries[:, :16] @ items[:, :16].T - queries @ items.T).max() > 0.1
    np.testing.assert_array_equal(shortened(items, found["last_first"], 3), items[:, :-4:-1])


def test_both_sides_count_where_items_differ_most_in_what_no_query_asks() -> None:
    random = np.random.default_rng(5)
    loud, asked = np.zeros(256), np.zeros(256)
    loud[:64], asked[64:128] = 4, 1
    items = (random.normal(size=(2_000, 256)) * (loud + asked + 0.01)).astype(np.float32)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    queries = (random.normal(size=(300, 256)) * (asked + 0.01)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    found = rotations(items, queries)
    best = (queries @ items.T).argmax(axis=1)

    def share(name: str) -> float:
        scores = short_queries(queries, found[name], 64) @ shortened(items, found[name], 64).T
        return float((scores.argmax(axis=1) == best).mean())

    assert share("both") > 0.8
    assert share("items") < 0.1


def test_without_queries_the_items_alone_say_which_axes_lead() -> None:
    assert list(rotations(unit_vectors(30), np.empty((0, 256), np.float32))) == ["items", "last_first"]


def test_prefixes_of_queries_are_of_unit_length_and_those_of_items_nested() -> None:
    vectors = unit_vectors(600)
    rotation = rotations(vectors, vectors)["both"]
    np.testing.assert_allclose(np.linalg.norm(short_queries(vectors, rotation, 64), axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(short_queries(np.zeros((1, 256), np.float32), rotation, 64), 0)
    long, short = shortened(vectors, rotation, 128), shortened(vectors, rotation, 64)
    np.testing.assert_allclose(long[:, :64], short, atol=1e-6)
    assert (np.linalg.norm(short, axis=1) < 0.95).all()


@pytest.mark.parametrize("name", FORMS)
def test_columns_are_those_that_the_table_declares_and_come_back(name: str) -> None:
    vectors, form = unit_vectors(11), short_vector(name)
    rotation = rotations(vectors, vectors)["items"]
    columns = dict(zip([column.name for column in form.columns], to_columns(vectors, form, rotation), strict=True))
    ids = pa.array([f"i{number}" for number in range(11)])
    batch = pa.RecordBatch.from_pydict({"item_id": ids, "model_id": ids, **columns})
    table = pa.Table.from_batches([conform_batch(batch, short_vectors_table([form]))])
    exact = shortened(vectors, rotation, form.length) if form.is_prefix else vectors
    steps = {"float32": 0.0, "float16": 2.0**-11, "int8": 0.51 / 127}
    np.testing.assert_allclose(from_columns(table, form), exact, atol=steps[form.kind])
    stored = sum(pc.sum(pc.binary_length(column)).as_py() for column in columns.values() if column.type == pa.binary())
    assert form.kind == "float32" or stored + 4 * 11 * bool(form.scale_column) == 11 * form.bytes


def test_forms_are_spelled_as_the_settings_have_them() -> None:
    assert short_vector("int8:256") == short_vector("int8") == ShortVector("int8", 256)
    assert [short_vector(name).bytes for name in FORMS] == [512, 260, 512, 128, 68, 12]
    assert [str(short_vector(name)) for name in FORMS] == list(FORMS)
    for wrong in ("int4", "int8:", "int8:7", "int8:257", "float32:256", "float32", "int8:064", "INT8"):
        with pytest.raises(ValueError, match=f"'{wrong}' is"):
            short_vector(wrong)
