"""Projections to 256 numbers: dot products are kept, the name says which one, and the files belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from itemsage_model.encoders.projection import Projection, fit_projection, load_projection, save_projection
from schemas.errors import InputError
from schemas.storage import write_bytes


def vectors_of_rank(rank: int, rows: int = 400, length: int = 512) -> np.ndarray:
    random = np.random.default_rng(1)
    return (random.standard_normal((rows, rank)) @ random.standard_normal((rank, length))).astype(np.float32)


def test_vectors_of_a_subspace_keep_their_dot_products():
    vectors = vectors_of_rank(200)
    projection = fit_projection("clip-1", vectors)
    projected = projection.apply(vectors)
    assert projected.shape == (400, 256)
    np.testing.assert_allclose(projected @ projected.T, vectors @ vectors.T, rtol=1e-3, atol=1e-2 * 512)
    assert projection.explained_variance == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(projection.matrix.T @ projection.matrix, np.eye(256), atol=1e-4)


def test_no_other_directions_keep_more_of_the_squared_length():
    vectors = vectors_of_rank(512)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    projection = fit_projection("clip-1", vectors)
    best = np.linalg.svd(unit.astype(np.float64), compute_uv=False)[:256]
    assert (projection.apply(unit) ** 2).sum() == pytest.approx((best**2).sum(), rel=1e-5)
    assert projection.explained_variance == pytest.approx((best**2).sum() / len(unit), rel=1e-5)


def test_shorter_vectors_are_padded_and_keep_their_dot_products_exactly():
    vectors = vectors_of_rank(100, length=128)
    projection = fit_projection("mini-1", vectors)
    np.testing.assert_array_equal(projection.apply(vectors)[:, :128], vectors)
    assert not projection.apply(vectors)[:, 128:].any()


def test_a_projection_comes_back_under_its_name_and_a_mixture_is_refused(tmp_path: Path):
    uri = str(tmp_path / "one")
    assert load_projection(uri) is None
    projection = fit_projection("clip-1", vectors_of_rank(300))
    save_projection(projection, uri)
    again = load_projection(uri)
    assert isinstance(again, Projection)
    assert (again.name, again.length) == (projection.name, 512)
    assert again.name.startswith("clip-1-to-256-")
    other = fit_projection("clip-1", vectors_of_rank(300)[::2])
    assert other.name != projection.name
    save_projection(other, str(tmp_path / "two"))
    write_bytes(f"{uri}/projection.safetensors", (tmp_path / "two" / "projection.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"a description of clip-1-to-256-\w+ beside the matrix of clip-1-to-256-"):
        load_projection(uri)
    write_bytes(f"{uri}/projection.safetensors", b"no tensors")
    with pytest.raises(InputError, match=r"query projection, .*Restore the folder"):
        load_projection(uri)


def test_what_a_projection_keeps_of_other_vectors_is_measured():
    projection = fit_projection("clip-1", vectors_of_rank(100))
    assert projection.kept_share(vectors_of_rank(100)) == pytest.approx(1.0, abs=1e-5)
    assert projection.kept_share(np.random.default_rng(9).standard_normal((50, 512)).astype(np.float32)) < 0.8


@pytest.mark.parametrize("length", [512, 200])
def test_the_common_direction_of_pictures_is_left_out_and_tells_nothing_else_apart(tmp_path: Path, length: int):
    around = np.random.default_rng(2).random(length).astype(np.float32)
    vectors = 0.05 * vectors_of_rank(150, length=length) + 20 * around
    projection = fit_projection("picture-1", vectors, has_common_direction=True)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = unit.mean(axis=0) / np.linalg.norm(unit.mean(axis=0))
    assert ((unit @ mean) ** 2).mean() > 0.9, "the vectors lie around one direction"
    rest = unit - np.outer(unit @ mean, mean)
    projected = projection.apply(unit)
    np.testing.assert_allclose(projected @ projected.T, rest @ rest.T, atol=1e-5)
    np.testing.assert_array_equal(projection.apply(7 * mean[None]), 0)
    assert projection.kept_share(vectors) == pytest.approx(1.0, abs=1e-3)
    save_projection(projection, str(tmp_path))
    again = load_projection(str(tmp_path))
    assert again is not None
    assert again.name == projection.name != fit_projection("picture-1", vectors).name
    np.testing.assert_array_equal(again.apply(unit), projected)
    assert again.kept_share(vectors) == projection.kept_share(vectors)
    assert again.kept_share(mean[None] + 0.01 * np.eye(length, dtype=np.float32)[:1]) <= 1


def test_of_fewer_vectors_than_directions_none_that_is_left_has_the_common_one():
    vectors = vectors_of_rank(3, rows=5, length=300) + 10
    projection = fit_projection("picture-1", vectors, has_common_direction=True)
    mean = np.mean(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), axis=0)
    # Not a vector of rounding, which unit length would make as long as any other.
    np.testing.assert_array_equal(projection.apply(mean[None].astype(np.float32)), 0)
    assert np.linalg.norm(projection.apply(vectors), axis=1).min() > 0.01


def test_of_one_vector_alone_nothing_is_left_out():
    vectors = np.repeat(vectors_of_rank(3, rows=1, length=300), 4, axis=0)
    projection = fit_projection("picture-1", vectors, has_common_direction=True)
    assert projection.common is None
    assert projection.kept_share(vectors) == pytest.approx(1)
