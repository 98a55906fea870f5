"""The short vectors that are published: written by score_catalog through here, read by whoever answers.

from retrieval.short_tables import read_short
from schemas.published import live
short = read_short(live(Warehouse("/data/warehouse")), "int8:64")
for ids, codes, scales in short.codes(): ...     # int8 [row, 64] and float32 [row]
for ids, vectors in short.vectors(): ...         # the same as float32 [row, 64]
scores = short.queries(query_vectors) @ vectors.T     # query_vectors: rows of the table, or adapted queries
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import safetensors.numpy

from retrieval.short_vectors import Floats, from_int8, short_queries, shortened, to_float16, to_int8
from schemas.cells import pack_cells, to_list_column, to_matrix, unpack_cells
from schemas.errors import InputError
from schemas.published import Published
from schemas.short_vectors import ShortVector, short_vector
from schemas.storage import read_batches, read_bytes, write_bytes
from schemas.tables import ITEM_SHORT_VECTORS

_NUMPY = {"float16": "<f2", "int8": "<i1"}


@dataclass(frozen=True, eq=False)
class ShortTable:
    """One short form of one published version.

    Attributes:
        published: The version.
        form: Which form.
        rotation: What its vectors, and its queries, were rotated by [256, length]; None = they are not.
    """

    published: Published
    form: ShortVector
    rotation: Floats | None

    def codes(self) -> Iterator[tuple[list[str], npt.NDArray[np.generic], Floats | None]]:
        """Ids, numbers as they are stored [row, length], and of int8 what each row's are multiplied by [row]."""
        output, form = self.published.short_output, self.form
        assert output is not None
        columns = [column.name for column in form.columns]
        for batch in read_batches(output.uri, output.version, ["item_id", *columns]):
            stored = batch.column(form.column)
            scales = batch.column(form.scale_column).to_numpy() if form.scale_column else None
            yield batch.column("item_id").to_pylist(), _numbers(stored, form), scales

    def vectors(self) -> Iterator[tuple[list[str], Floats]]:
        """Ids, and their vectors as float32 [row, length]."""
        for ids, numbers, scales in self.codes():
            yield ids, _decoded(numbers, scales)

    def queries(self, vectors: Floats) -> Floats:
        """Query vectors as these items want them: float32 [query, length], of unit length.

        Args:
            vectors: Rows of query_vectors, or queries that have passed the model's adapter [query, 256].
        """
        return short_queries(vectors, self.rotation, self.form.length)


def read_short(found: Published, name: str) -> ShortTable:
    """A short form of what is published.

    Args:
        found: The version.
        name: As in score.short_vectors, such as int8:64.

    Raises:
        InputError: the version has no such form, or its rotation is gone or damaged.
    """
    known = found.short_forms
    if name not in known:
        raise InputError(
            f"item_embeddings, version {found.version}",
            f"short vectors {name}",
            expected=f"a form that it has: {', '.join(known)}" if known else "a version with short vectors",
            found="no such form",
            cure="Name it in score.short_vectors and run score_catalog again.",
        )
    form = short_vector(name)
    return ShortTable(found, form, load_rotation(found.rotation_uri)[:, : form.length] if form.is_prefix else None)


def to_columns(vectors: Floats, form: ShortVector, rotation: Floats | None) -> list[pa.Array]:
    """The columns of a form, in their order, of some embeddings.

    Args:
        vectors: Embeddings [row, 256].
        form: Which form.
        rotation: The catalog's [256, 256]; only prefixes ask.
    """
    kept = shortened(vectors, rotation, form.length) if form.is_prefix else vectors
    if form.kind == "float32":
        return [to_list_column(kept)]
    scales = None
    if form.kind == "float16":
        numbers: npt.NDArray[np.generic] = to_float16(kept)
    else:
        numbers, scales = to_int8(kept)
    cells = pack_cells(np.ascontiguousarray(numbers), np.full(len(kept), form.length, np.int64))
    return [cells] if scales is None else [cells, pa.array(scales, pa.float32())]


def from_columns(table: pa.Table, form: ShortVector) -> Floats:
    """The inverse of `to_columns`, up to the rounding of the form: float32 [row, length]."""
    scales = table[form.scale_column].to_numpy() if form.scale_column else None
    return _decoded(_numbers(table[form.column], form), scales)


def save_rotation(folder: str, rotation: Floats) -> str:
    """Keep a rotation as `<folder>/rotation-<sha256>.safetensors`; returns the file's name."""
    content = safetensors.numpy.save({"rotation": rotation})
    name = f"rotation-{hashlib.sha256(content).hexdigest()}.safetensors"
    write_bytes(f"{folder}/{name}", content)
    return name


def load_rotation(uri: str) -> Floats:
    """The rotation [256, 256] of `save_rotation`.

    Raises:
        InputError: the file is gone, or is not what its name says.
    """
    try:
        content = read_bytes(uri)
    except FileNotFoundError as error:
        raise _refusal(uri, "no such file") from error
    if hashlib.sha256(content).hexdigest() not in uri.rpartition("/")[2]:
        raise _refusal(uri, "another content")
    rotation: Floats = safetensors.numpy.load(content)["rotation"]
    return rotation


def _refusal(uri: str, found: str) -> InputError:
    expected = "the rotation that the file's name is the sha256 of"
    cure = "Restore it from a copy, or score the catalog again with `--set score.max_changed_share=0`."
    return InputError(ITEM_SHORT_VECTORS.name, uri, expected=expected, found=found, cure=cure)


def _numbers(stored: pa.Array | pa.ChunkedArray, form: ShortVector) -> npt.NDArray[np.generic]:
    """Stored numbers [row, length]."""
    if form.kind == "float32":
        matrix = to_matrix(stored)
        return matrix if len(matrix) else np.empty((0, form.length), np.float32)
    numbers, counts = unpack_cells(stored, _NUMPY[form.kind])
    if (counts != form.length).any():
        raise InputError(
            ITEM_SHORT_VECTORS.name,
            form.column,
            expected=f"cells of {form.length} numbers",
            found=f"one of {counts[counts != form.length][0]}",
            cure="Score the catalog again with `--set score.max_changed_share=0`.",
        )
    return numbers.reshape(-1, form.length)


def _decoded(numbers: npt.NDArray[np.generic], scales: Floats | None) -> Floats:
    if scales is not None:
        return from_int8(numbers.astype(np.int8, copy=False), scales)
    vectors: Floats = numbers.astype(np.float32, copy=False)
    return vectors
