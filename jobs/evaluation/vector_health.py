"""Vectors that are about to be published, where they lie: a sample beside the version before, and canaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from itemsage_model.evaluation.health import VectorSample, health_of
from schemas.cells import to_matrix
from schemas.metrics import Health
from schemas.settings.serving import CanarySettings

SAMPLED_ITEMS = 10_000
_BUCKETS = 1 << 30


def health(
    scored: DataFrame,
    previous: DataFrame | None,
    row_count: int,
    changed: DataFrame | None = None,
    *,
    is_same_model: bool,
) -> Health:
    """What a sample of about SAMPLED_ITEMS items looks like, beside the same items of the version before.

    Args:
        scored: Rows of ITEM_EMBEDDINGS that are to be published.
        previous: Those that are published; None = none.
        row_count: Rows that will be published.
        changed: item_id of the rows of `previous` that `scored` replaces, or that leave; None = `scored` replaces all.
        is_same_model: Whether both are of one model.
    """
    share = min(1.0, SAMPLED_ITEMS / max(row_count, 1))
    before = None if previous is None else sampled(previous, share)
    new = sampled(scored, share)
    if changed is not None and before is not None:
        ids = _chosen(changed, share).select("item_id").toArrow()["item_id"].to_pylist()
        new = before.replaced(np.array(ids, dtype=np.str_), new)
    return health_of(new, before, is_same_model=is_same_model)


def sampled(rows: DataFrame, share: float) -> VectorSample:
    """Items chosen by a hash of their id, so that two versions give the same ones."""
    table = _chosen(rows, share).select("item_id", "features_hash", "embedding").toArrow()
    ids = np.array(table["item_id"].to_pylist(), dtype=np.str_)
    order = np.argsort(ids, kind="stable")
    features = np.array(table["features_hash"].to_pylist(), dtype=np.str_)
    return VectorSample(ids, features, to_matrix(table["embedding"])).taken(order)


def is_sampled(share: float, key: str = "item_id") -> Column:
    """Whether a row is among the share of them that is chosen by a hash of its key."""
    return F.pmod(F.xxhash64(key), F.lit(_BUCKETS)) < F.lit(round(share * _BUCKETS))


def _chosen(rows: DataFrame, share: float) -> DataFrame:
    return rows.where(is_sampled(share))


def with_canaries(found: Health, items: DataFrame, queries: DataFrame, canaries: Sequence[CanarySettings]) -> Health:
    """The figures, and for each canary whether all that it must find is among its first results.

    Args:
        found: The figures.
        items: Rows of ITEM_EMBEDDINGS.
        queries: Rows of QUERY_VECTORS.
        canaries: The questions; one whose item or query is not there finds nothing.
    """
    if not canaries:
        return found
    vectors = {
        "item": _vectors(items, "item_id", "embedding", [one.item for one in canaries]),
        "query": _vectors(queries, "query_id", "query_vector", [one.query for one in canaries]),
    }
    known = [one for one in canaries if (one.item or one.query) in vectors["item" if one.item else "query"]]
    asked = [vectors["item"][one.item] if one.item else vectors["query"][one.query] for one in known]
    first = _first_results(items, known, np.array(asked, np.float32)) if known else []
    is_found = dict.fromkeys((one.name for one in canaries), True)
    for one in canaries:
        results = first[known.index(one)] if one in known else set()
        is_found[one.name] &= set(one.finds) <= results
    return replace(found, canaries=is_found)


def _vectors(table: DataFrame, key: str, vector: str, ids: Sequence[str]) -> dict[str, list[float]]:
    wanted = [one for one in ids if one]
    return {row[0]: row[1] for row in table.where(F.col(key).isin(wanted)).select(key, vector).collect()}


def _first_results(
    items: DataFrame, canaries: Sequence[CanarySettings], vectors: npt.NDArray[np.float32]
) -> list[set[str]]:
    """Ids of the first results of each question, in one pass over all items."""
    most = max(one.within for one in canaries) + 1
    columns = "n int, id string, score float"
    found = items.select("item_id", "embedding").mapInArrow(_best_of_batches(vectors, most), columns)
    rows = found.toArrow().to_pylist()
    results = []
    for number, one in enumerate(canaries):
        own = [(-row["score"], row["id"]) for row in rows if row["n"] == number and row["id"] != one.item]
        results.append({name for _, name in sorted(own)[: one.within]})
    return results


def _best_of_batches(
    vectors: npt.NDArray[np.float32], most: int
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def best(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            scores = vectors @ to_matrix(batch.column("embedding")).T
            ids = batch.column("item_id")
            for number, row in enumerate(scores):
                order = np.argsort(-row, kind="stable")[:most]
                numbers = pa.array([number] * len(order), pa.int32())
                arrays = [numbers, ids.take(pa.array(order)), pa.array(row[order], pa.float32())]
                yield pa.RecordBatch.from_arrays(arrays, ["n", "id", "score"])

    return best
