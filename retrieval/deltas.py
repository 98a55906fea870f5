"""An index that follows the change feed: adds and changed items as a shard of its own, what is gone as tombstones.

Each time both are written anew, from those of before and the feed since, so that an index has at most one such shard,
whatever the number of days. The shards that were built stay as they are, and a manifest that names all of them takes
the place of the former one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.build_index import build_name, shard_of, write_shard
from retrieval.filters import filter_columns
from retrieval.index import Index, without
from retrieval.manifest import Delta, Manifest, write_file
from retrieval.shards import BuildSettings, Shard
from retrieval.source import adapter_of, published_items
from retrieval.top import Scores
from schemas.code_version import code_version
from schemas.published import UPSERT, Published, changes_since


class RebuildNeeded(Exception):  # noqa: N818 (no error: what to do instead)
    """An index cannot, or should no longer, follow the feed; the message says why."""


@dataclass(frozen=True)
class Followed:
    """An index that has followed the feed, written and not in use yet.

    Attributes:
        manifest: Of what it holds now; without a certificate.
        build: The name of the build.
        index: It, open.
    """

    manifest: Manifest
    build: str
    index: Index


def follow(index: Index, folder: str, found: Published, settings: BuildSettings, max_share: float) -> Followed:
    """Bring an index to a later version.

    Args:
        index: The index in use.
        folder: Where it lies.
        found: The version that it shall hold.
        settings: What an index shall be built with now.
        max_share: Most of its items that may be adds and tombstones, 0 to 1.

    Raises:
        RebuildNeeded: it was built otherwise, the feed does not tell, or too much has changed since it was built.
    """
    before = index.manifest
    require_alike(before, found, settings)
    changes = changes_since(found.warehouse, before.version, found.version)
    if changes is None:
        raise RebuildNeeded(f"the feed does not lead from version {before.version} to {found.version}")
    base, adds = _parts(index)
    touched = pa.array(sorted(changes), pa.string())
    removed = pa.concat_arrays([*_removed_before(index, base), *(_among(shard, touched) for shard in base)])
    removed = pc.unique(removed)
    pieces = [*_kept(adds, touched), *_changed(found, changes)]
    count = sum(rows.num_rows for rows, _ in pieces)
    items, rows = sum(map(len, base)) - len(removed) + count, found.outputs[0].rows
    if items != rows:
        raise RebuildNeeded(f"with the feed it would hold {items:,} items, and version {found.version} has {rows:,}")
    if (count + len(removed)) > max_share * max(rows, 1):
        raise RebuildNeeded(
            f"{count:,} adds and {len(removed):,} tombstones are more than {max_share:.0%} of {rows:,} items"
        )
    build = build_name(found.version)
    shard = shard_of(pieces, settings) if count else None
    delta = Delta(
        before.delta.base_version if before.delta else before.version,
        write_shard(shard, folder, build, "adds") if shard else None,
        write_file(folder, f"{build}/removed.arrow", _stored(removed)),
        len(removed),
    )
    manifest = replace(
        before,
        version=found.version,
        spaces=found.metrics.spaces,
        as_of=found.as_of,
        items=rows,
        build=settings,
        code=code_version(),
        delta=delta,
        certificate=None,
    )
    alive = [without(one, removed) for one in base]
    both = ([*base, shard], [*alive, None]) if shard else (base, alive)
    return Followed(manifest, build, Index(index.name, manifest, *both))


def require_alike(before: Manifest, found: Published, settings: BuildSettings) -> None:
    """Refuse to mix what was made of another model, for other queries, or in another way; how it is searched is free.

    Raises:
        RebuildNeeded: so it would be.
    """
    pairs: dict[str, tuple[object, object]] = {
        "model_id": (before.model_id, found.model_id),
        "spaces of the queries": (before.spaces, found.metrics.spaces),
        "query adapter": (before.adapter, adapter_of(found)),
        "filter columns": (before.columns, filter_columns(found.outputs[0].uri, found.version)),
    }
    pairs |= {key: (getattr(before.build, key), value) for key, value in asdict(settings).items() if key != "ef_search"}
    for name, (was, now) in pairs.items():
        if was != now:
            raise RebuildNeeded(f"its {name}: {was}, and now {now}")


def _parts(index: Index) -> tuple[Sequence[Shard], Shard | None]:
    """The shards that were built, and that of the adds."""
    has_adds = index.manifest.delta is not None and index.manifest.delta.adds is not None
    return (index.shards[:-1], index.shards[-1]) if has_adds else (index.shards, None)


def _removed_before(index: Index, base: Sequence[Shard]) -> list[pa.Array]:
    gone = [(shard, alive) for shard, alive in zip(base, index.alive, strict=False) if alive is not None]
    return [_ids(shard).filter(pa.array(~alive)) for shard, alive in gone]


def _among(shard: Shard, touched: pa.Array) -> pa.Array:
    """The ids of a shard that the feed names."""
    return _ids(shard).filter(pc.is_in(_ids(shard), value_set=touched))


def _ids(shard: Shard) -> pa.Array:
    return shard.rows["item_id"].combine_chunks()


def _kept(adds: Shard | None, touched: pa.Array) -> list[tuple[pa.Table, Scores]]:
    """The rows of the adds of before that the feed does not name."""
    if adds is None:
        return []
    keep = ~np.asarray(pc.is_in(_ids(adds), value_set=touched))
    return [(adds.rows.filter(pa.array(keep)), adds.vectors[keep])] if keep.any() else []


def _changed(found: Published, changes: Mapping[str, str]) -> Iterator[tuple[pa.Table, Scores]]:
    """The rows of the table that the feed says were added or have changed."""
    wanted = pa.array(sorted(item_id for item_id, change in changes.items() if change == UPSERT), pa.string())
    if not len(wanted):
        return
    for rows, vectors in published_items(found):
        keep = pc.is_in(rows["item_id"], value_set=wanted)
        if pc.any(keep).as_py():
            yield rows.filter(keep), vectors[np.asarray(keep)]


def _stored(removed: pa.Array) -> bytes:
    table = pa.table({"item_id": removed})
    content = pa.BufferOutputStream()
    with pa.ipc.new_file(content, table.schema) as writer:
        writer.write_table(table)
    return bytes(content.getvalue().to_pybytes())
