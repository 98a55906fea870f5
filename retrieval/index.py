"""An index that is open: searched by vectors of its own space, under filters or none.

from retrieval.index import open_index
index = open_index("/data/warehouse/index")
index.require_space("search", "lsa-1f0c...")
hits = index.search(vectors, k=10, where={"in_stock": [True]})
hits.item_ids, hits.scores
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.filters import Where, allowed_values, passing
from retrieval.manifest import Manifest, ShardFiles, find_manifest, read_file
from retrieval.shards import Allowed, Shard
from retrieval.top import Rows, Scores, best
from schemas.errors import InputError
from schemas.storage import absolute_uri

_KEPT_FILTERS = 32


@dataclass(frozen=True)
class Hits:
    """What a search has found, best first.

    Attributes:
        item_ids: object [query, k]; None where fewer were found.
        scores: Inner products, float32 [query, k]; -inf there.
    """

    item_ids: npt.NDArray[np.object_]
    scores: Scores


class Index:
    """Some shards, searched as one.

    Args:
        name: What errors call it.
        manifest: What it says of itself.
        shards: Its shards; those of its delta last.
        alive: Rows of each shard that have not been removed; None = all of them.
    """

    def __init__(
        self, name: str, manifest: Manifest, shards: Sequence[Shard], alive: Sequence[Allowed | None] | None = None
    ) -> None:
        self.name, self.manifest, self.shards = name, manifest, tuple(shards)
        self.alive = tuple(alive or [None] * len(self.shards))
        self._starts = [0, *itertools.accumulate(map(len, self.shards))]
        # Python's own texts, 70 bytes an item: to make them anew for each answer takes as long as a search. -1 is None.
        ids = [item_id for shard in self.shards for item_id in shard.rows["item_id"].to_pylist()]
        self._ids = np.array([*ids, None], object)
        self._filters: dict[str, list[Allowed]] = {}

    def __len__(self) -> int:
        """Items that can be found."""
        removed = sum(int(np.count_nonzero(~alive)) for alive in self.alive if alive is not None)
        return self._starts[-1] - removed

    def require_space(self, query_kind: str, embedding_space: str) -> None:
        """Refuse queries of another space, such as of an encoder that was fitted anew, than the index answers.

        Raises:
            InputError: it answers no queries of this kind, or those of another space.
        """
        answered = self.manifest.spaces.get(query_kind)
        if answered != embedding_space:
            kinds = ", ".join(sorted(self.manifest.spaces)) or "none is named"
            raise InputError(
                self.name,
                f"{query_kind} queries",
                expected=f"queries of the space {answered}" if answered else f"queries of a kind it answers: {kinds}",
                found=f"queries of the space {embedding_space}",
                cure="Encode them as the queries of this index were, or open the index that answers them.",
            )

    def search(self, vectors: npt.NDArray[np.float32], k: int, where: Where | None = None) -> Hits:
        """The items of the largest inner products; never fewer than k, where k items pass the filter.

        Args:
            vectors: float32 [query, dim]; of unit length, the scores are cosines.
            k: How many.
            where: Column -> allowed values; an item passes where every column has one of them.

        Raises:
            InputError: vectors of another length or with NaN, a k below 1, an unknown column, a value of another type.
        """
        allowed = self.allowed(where) if where else [None] * len(self.shards)
        scores, rows = self.find(self._checked(vectors, k), k, allowed)
        return Hits(self.ids_of(rows), scores)

    def allowed(self, where: Where) -> list[Allowed]:
        """Which rows of each shard pass a filter; that of the last few filters is kept."""
        values = allowed_values(where, self.manifest.columns)
        key = repr(sorted((name, sorted(map(repr, allowed.to_pylist()))) for name, allowed in values.items()))
        found = self._filters.pop(key, None)
        if found is None:
            found = [passing(shard.rows, values) for shard in self.shards]
            while len(self._filters) >= _KEPT_FILTERS:
                self._filters.pop(next(iter(self._filters)), None)  # another thread may have taken it away
        self._filters[key] = found
        return found

    def find(self, queries: Scores, k: int, allowed: Sequence[Allowed | None]) -> tuple[Scores, Rows]:
        """`search` by masks, without a check: inner products and rows, [query, k]; rows count on through the shards."""
        ef_search, found = self.manifest.build.ef_search, []
        for shard, start, alive, chosen in zip(self.shards, self._starts, self.alive, allowed, strict=False):
            both = alive if chosen is None else chosen if alive is None else chosen & alive
            scores, rows = shard.search(queries, k, ef_search, both)
            found.append((scores, np.where(rows < 0, rows, rows + start)))
        if len(found) == 1:
            return found[0]
        return best(np.hstack([scores for scores, _ in found]), np.hstack([rows for _, rows in found]), k)

    def ids_of(self, rows: Rows) -> npt.NDArray[np.object_]:
        """The item ids of rows of `find`; None for -1."""
        found: npt.NDArray[np.object_] = self._ids[rows]
        return found

    def vectors_of(self, item_ids: Sequence[str]) -> tuple[Scores, npt.NDArray[np.bool_]]:
        """The vectors of items, float32 [item, dim], and whether each is there; NaN where it is not."""
        wanted = pa.array(item_ids, pa.string())
        found = np.full((len(wanted), self.manifest.dim), np.nan, np.float32)
        for shard, alive in zip(self.shards, self.alive, strict=True):
            positions = pc.index_in(wanted, shard.rows["item_id"].combine_chunks()).fill_null(-1).to_numpy()
            is_here = positions >= 0
            if alive is not None:
                is_here &= alive[positions]
            found[is_here] = shard.vectors[positions[is_here]]
        return found, ~np.isnan(found[:, 0])

    def _checked(self, vectors: npt.NDArray[np.float32], k: int) -> Scores:
        dim = self.manifest.dim
        if k < 1:
            raise InputError(self.name, "k", expected="at least 1", found=str(k), cure="Ask for one item at least.")
        found = np.ascontiguousarray(vectors, np.float32)
        if found.ndim != 2 or found.shape[1] != dim or not np.isfinite(found).all():
            is_shaped = found.ndim == 2 and found.shape[1] == dim
            raise InputError(
                self.name,
                "query vectors",
                expected=f"finite numbers, [query, {dim}]",
                found="NaN or infinite ones" if is_shaped else f"the shape {list(found.shape)}",
                cure="Give the rows of query_vectors, or vectors made as they were.",
            )
        return found


def open_index(folder: str, version: int | None = None, spaces: Mapping[str, str] | None = None) -> Index:
    """Open the index in use, once every file of it is what its manifest says.

    Args:
        folder: A path or URI.
        version: Version of item_embeddings that it must hold; None = any.
        spaces: Query kind -> embedding space that it must answer.

    Raises:
        InputError: there is none, it has no certificate or one below its own bar, it is of another version or space,
            or a file is gone, truncated or changed.
    """
    folder = absolute_uri(folder).rstrip("/")
    manifest = find_manifest(folder)
    if manifest is None:
        cure = "Build one: `itemsage export-index --settings FILE`."
        raise InputError(f"index {folder}", "", expected="an index", found="none", cure=cure)
    require_certificate(folder, manifest)
    if version is not None and manifest.version != version:
        raise InputError(
            f"index {folder}",
            "version",
            expected=f"version {version} of item_embeddings",
            found=f"version {manifest.version}",
            cure=f"Export that version: `itemsage export-index --settings FILE --set index.version={version}`.",
        )
    index = load(folder, manifest)
    for kind, space in (spaces or {}).items():
        index.require_space(kind, space)
    return index


def require_certificate(folder: str, manifest: Manifest) -> None:
    """Refuse an index that was not measured, or whose certificate is below the recall that it had to reach.

    Raises:
        InputError: so it is.
    """
    found = manifest.certificate
    if found is None or not found.figures or found.weakest.recall < found.min_recall:
        least = f"recall {found.weakest.recall:.3f} of {found.weakest.name}" if found and found.figures else "none"
        raise InputError(
            f"index {folder}",
            "certificate",
            expected=f"recall of at least {found.min_recall} everywhere" if found else "a recall certificate",
            found=least,
            cure="Export it again; raise index.ef_search where the recall is too low.",
        )


def load(folder: str, manifest: Manifest) -> Index:
    """Read and check all files of a manifest.

    Raises:
        InputError: a file is not what the manifest says, or more or fewer items are found than it says.
    """
    name = f"index {folder}"
    engine = manifest.build.engine
    shards = [_load_shard(folder, part, engine) for part in manifest.shards]
    alive: list[Allowed | None] = [None] * len(shards)
    if delta := manifest.delta:
        removed = read_removed(read_file(folder, delta.removed))
        alive = [without(shard, removed) for shard in shards]
        if delta.adds:
            shards, alive = [*shards, _load_shard(folder, delta.adds, engine)], [*alive, None]
    index = Index(name, manifest, shards, alive)
    if len(index) != manifest.items:
        cure = "Build it again with index.rebuild = true."
        raise InputError(name, "items", expected=f"{manifest.items:,}", found=f"{len(index):,}", cure=cure)
    return index


def without(shard: Shard, removed: pa.Array) -> Allowed | None:
    """Which rows of a shard are not among removed ids; None = all of them."""
    gone = np.asarray(pc.is_in(shard.rows["item_id"], value_set=removed))
    return ~gone if gone.any() else None


def read_removed(content: bytes) -> pa.Array:
    """The ids of a file of tombstones."""
    with pa.ipc.open_file(pa.py_buffer(content)) as reader:
        return reader.read_all()["item_id"].combine_chunks()


def _load_shard(folder: str, files: ShardFiles, engine: str) -> Shard:
    vectors, rows = read_file(folder, files.vectors), read_file(folder, files.rows)
    try:
        shard = Shard.from_bytes(vectors, rows, engine)
    except (ValueError, OSError, pa.ArrowException) as error:
        cure = "Build it again with index.rebuild = true."
        found = " ".join(str(error).split())[:200]
        raise InputError(f"index {folder}", files.vectors.path, expected="a shard", found=found, cure=cure) from error
    if len(shard) != files.items:
        cure = "Build it again with index.rebuild = true."
        expected, found = f"{files.items:,} items", f"{len(shard):,}"
        raise InputError(f"index {folder}", files.rows.path, expected=expected, found=found, cure=cure)
    return shard
