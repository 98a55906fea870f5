"""Building an index of one published version: its shards written, not yet in use.

    manifest, build = write_index(found, folder, BuildSettings())     # files and nothing else
    publish(folder, build, certified manifest)                        # retrieval/manifest.py, retrieval/certificate.py

A catalog of more items than fit one shard is built by Spark's workers, a shard each, by the same `write_shard`
(jobs/export_index.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.filters import filter_columns
from retrieval.manifest import Manifest, ShardFiles, write_file
from retrieval.shards import BuildSettings, Shard
from retrieval.source import adapter_of, published_items
from retrieval.top import Scores
from schemas.code_version import code_version
from schemas.errors import TableError
from schemas.published import Published
from schemas.tables import EMBEDDING_DIM, ITEM_EMBEDDINGS


def write_index(found: Published, folder: str, settings: BuildSettings) -> tuple[Manifest, str]:
    """Build one shard of all items, in this process; returns the manifest, without a certificate, and the build's name.

    Raises:
        TableError: as of `source.checked`, `shard_of` and `with_shards`.
        InputError: as of `describe`.
    """
    draft, build = describe(found, settings), build_name(found.version)
    shard = shard_of(published_items(found), settings)
    return with_shards(draft, [write_shard(shard, folder, build, "0")]), build


def build_name(version: int) -> str:
    """A name that no other build has."""
    return f"v{version}-{uuid4().hex[:8]}"


def shard_of(pieces: Iterable[tuple[pa.Table, Scores]], settings: BuildSettings) -> Shard:
    """A shard of rows that come in pieces.

    Raises:
        TableError: there is no row, or an item has two.
    """
    parts = list(pieces)
    if not parts:
        cure = "Publish a version with items."
        raise TableError(ITEM_EMBEDDINGS.name, "(all)", expected="at least one row", found="none", cure=cure)
    rows = pa.concat_tables([rows for rows, _ in parts])
    vectors = np.concatenate([vectors for _, vectors in parts])
    parts.clear()
    counts = pc.value_counts(rows["item_id"])
    if len(counts) < rows.num_rows:
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        raise TableError(
            ITEM_EMBEDDINGS.name,
            "item_id",
            expected="one row an item",
            found=f"{len(twice):,} items with several, such as {twice[0].as_py()}",
            cure="Score the catalog again.",
        )
    return Shard.build(rows, vectors, settings)


def write_shard(shard: Shard, folder: str, build: str, name: str) -> ShardFiles:
    """Write the files of a shard; a repeated try writes others, as the name may be taken."""
    vectors, rows = shard.to_bytes()
    path = f"{build}/{name}-{uuid4().hex[:8]}"
    return ShardFiles(
        write_file(folder, f"{path}.{'graph' if shard.graph else 'npy'}", vectors),
        write_file(folder, f"{path}.arrow", rows),
        len(shard),
    )


def describe(found: Published, settings: BuildSettings) -> Manifest:
    """The manifest of an index that shall hold a version whole, before it has shards.

    Raises:
        InputError: as of `adapter_of`.
    """
    return Manifest(
        version=found.version,
        model_id=found.model_id,
        spaces=found.metrics.spaces,
        adapter=adapter_of(found),
        as_of=found.as_of,
        dim=EMBEDDING_DIM,
        items=found.outputs[0].rows,
        columns=filter_columns(found.outputs[0].uri, found.version),
        build=settings,
        code=code_version(),
    )


def with_shards(draft: Manifest, shards: Sequence[ShardFiles]) -> Manifest:
    """The manifest of an index that has these shards.

    Raises:
        TableError: they hold more or fewer items than the commit of the version says.
    """
    items = sum(shard.items for shard in shards)
    if items != draft.items:
        cure = "Restore the files of the version, or name another by index.version."
        expected = f"{draft.items:,} rows, as the commit of version {draft.version} says"
        raise TableError(ITEM_EMBEDDINGS.name, "(all)", expected=expected, found=f"{items:,}", cure=cure)
    return replace(draft, shards=tuple(shards))
