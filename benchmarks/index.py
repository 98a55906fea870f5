"""Rows 10 and 11: an exported index against plain faiss: building it of a published table, and searching it.

A million vectors around 2,000 centres, each with noise as long as itself, in a published table. Row 11, from the opened
session to the pointer: `export_index` on local[2], four shards of Spark workers, certificate and all, against a program
of one process that reads the files with pyarrow and lets faiss add all vectors to one graph with two threads. Row 10,
the same graphs on one core, one query after the other: our four shards, the program's graph as one shard of ours, and
the program's graph as faiss itself searches it; with their recall@10 against exact search. All with 16 links, 40
candidates while building, and 64 while searching.

    python -m benchmarks.index [--rounds N] [--small]
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import faiss as untyped
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, write_deltalake

from benchmarks.contest import Contender, Figures, Row, Turn, compete, judge, repeat, require
from benchmarks.report import Options, main, print_outcome
from benchmarks.spark_tables import session
from jobs import export_index
from retrieval.faiss_engine import FaissGraph
from retrieval.index import Index, open_index
from retrieval.manifest import find_manifest
from retrieval.shards import Shard
from retrieval.top import Scores, nearest
from schemas.cells import to_list_column, to_matrix
from schemas.metrics import ScoreMetrics
from schemas.published import PUBLISHED
from schemas.settings import Settings
from schemas.storage import data_files
from schemas.tables import EMBEDDING_DIM, ITEM_EMBEDDINGS, QUERY_VECTORS
from schemas.warehouse import Warehouse

faiss: Any = untyped
SHARDS, ONE, PLAIN = "our four shards", "one shard", "plain faiss"
OURS, PROGRAM = "export_index", "pyarrow + faiss, two threads"
LINKS, CANDIDATES, SEARCHED, K = 16, 40, 64, 10
CENTRES, QUERIES, ROWS_AT_ONCE = 2_000, 500, 50_000
MODEL, QUERY_SEED = "synthetic", 7


def rows(options: Options) -> Iterator[Row]:
    """Publish the table, let both build, then let all search."""
    items = options.choose(1_000_000, 20_000)
    publish_vectors(options.scratch, items)
    builders = [
        Contender(OURS, job_turn, (options.scratch, items)),
        Contender(PROGRAM, program_turn, (options.scratch,)),
    ]
    outcome = compete(builders, options.rounds or 1)
    print_outcome(f"an index of {items:,} vectors, whole program", "vectors", outcome)
    yield judge("11", f"export of {items:,} vectors", PROGRAM, outcome.ratios(OURS, PROGRAM), at_least=0.5)
    names = (SHARDS, ONE, PLAIN)
    outcome = compete([Contender(name, search_turn, (name, options.scratch)) for name in names], options.rounds or 6)
    print_outcome(f"searches among {items:,} vectors, one core, one by one", "queries", outcome)
    recalls = {name: float(np.mean([one["recall"] for one in outcome.performances[name].figures])) for name in names}
    for name, recall in recalls.items():
        print(f"  recall@{K} of {name}: {recall:.4f}")
    yield judge("10", "queries/s of one shard", PLAIN, outcome.ratios(ONE, PLAIN), at_least=0.8)
    yield judge("10", "queries/s of four shards", PLAIN, outcome.ratios(SHARDS, PLAIN))
    yield judge("10", "recall@10 of four shards", PLAIN, [recalls[SHARDS] / recalls[PLAIN]], at_least=1)


def some_vectors(seed: int, count: int) -> Scores:
    """Unit vectors around the centres; float32 [row, 256]."""
    centres = np.random.default_rng(0).normal(size=(CENTRES, EMBEDDING_DIM)).astype(np.float32)
    random = np.random.default_rng([1, seed])
    noise = random.standard_normal((count, EMBEDDING_DIM), np.float32)
    vectors: Scores = centres[random.integers(CENTRES, size=count)] + noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def publish_vectors(scratch: Path, items: int) -> None:
    """A warehouse with a published version, as score_catalog leaves it."""
    warehouse = Warehouse(str(scratch / "warehouse"))
    (Path(warehouse.models) / MODEL).mkdir(parents=True)
    (Path(warehouse.models) / MODEL / "model.json").write_text('{"model": {"query_adapter": false}}')
    schema = pa.schema([("item_id", pa.string()), ("embedding", pa.list_(pa.float32())), ("model_id", pa.string())])

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, items, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, items - start)
            ids = pa.array([f"item-{number:09}" for number in range(start, start + count)])
            columns = [ids, to_list_column(some_vectors(start, count)), pa.array([MODEL] * count)]
            yield pa.RecordBatch.from_arrays(
                [one.cast(field.type) for one, field in zip(columns, schema, strict=True)], schema=schema
            )

    vectors = to_list_column(some_vectors(QUERY_SEED, QUERIES))
    queries = {"query_id": [f"q-{number}" for number in range(QUERIES)], "query_kind": ["search"] * QUERIES}
    answers = pa.table({**queries, "query_vector": vectors, "model_id": [MODEL] * QUERIES})
    write_deltalake(warehouse.table(QUERY_VECTORS.name), answers)
    metrics = ScoreMetrics(MODEL, "float32", published_id=MODEL, spaces={"search": "synthetic"})
    what = {"metrics": asdict(metrics), "rows": items, QUERY_VECTORS.name: {"version": 0, "rows": QUERIES}}
    note = json.dumps({"run_id": "benchmark", "as_of": "2026-03-01", PUBLISHED: what})
    reader = pa.RecordBatchReader.from_batches(schema, batches())
    properties = CommitProperties({"userMetadata": note})
    write_deltalake(warehouse.table(ITEM_EMBEDDINGS.name), reader, commit_properties=properties)


def job_turn(scratch: Path, items: int) -> Turn:
    """The job, in a session of its own."""
    index = {"hnsw_m": LINKS, "ef_construction": CANDIDATES, "ef_search": SEARCHED, "exact_rows": 0, "rebuild": True}
    settings = Settings.model_validate({
        "warehouse": {"uri": str(scratch / "warehouse")},
        "dates": {"as_of": "2026-03-01", "train_days": 20, "test_days": 7},
        "index": {**index, "items_per_shard": -(-items // 4), "min_recall": 0.0, "queries_per_kind": 100},
    })  # fmt: skip

    def turn() -> Figures:
        with session(OURS, scratch, spark__driver__memory="5g") as spark:
            started = time.perf_counter()
            export_index.run(spark, settings)
            return {"units": items, "seconds": time.perf_counter() - started}

    return turn


def program_turn(scratch: Path) -> Turn:
    """One process without Spark, two threads, one graph."""

    def turn() -> Figures:
        faiss.omp_set_num_threads(2)
        started = time.perf_counter()
        files = data_files(str(scratch / "warehouse" / ITEM_EMBEDDINGS.name))
        vectors = np.concatenate([to_matrix(pq.read_table(file, columns=["embedding"])["embedding"]) for file in files])
        ids = pa.concat_tables([pq.read_table(file, columns=["item_id"]) for file in files])
        index = faiss.IndexHNSWFlat(EMBEDDING_DIM, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = CANDIDATES
        index.add(vectors)
        faiss.write_index(index, str(scratch / "plain.graph"))
        pq.write_table(ids, scratch / "plain.parquet")
        return {"units": len(vectors), "seconds": time.perf_counter() - started}

    return turn


def search_turn(name: str, scratch: Path) -> Turn:
    """One thread, one query after the other, 10 nearest of each."""
    faiss.omp_set_num_threads(1)
    folder = str(scratch / "warehouse" / "index")
    queries = some_vectors(QUERY_SEED, QUERIES)
    if name == SHARDS:
        index = open_index(folder)
        require(len(index.shards) == 4, "the export has made another number of shards")
    if name == ONE:
        graph = FaissGraph(faiss.read_index(str(scratch / "plain.graph")))
        manifest = find_manifest(folder)
        assert manifest is not None
        shard = Shard(pq.read_table(scratch / "plain.parquet").combine_chunks(), graph.vectors, graph)
        index = Index(name, replace(manifest, delta=None), [shard])
    if name == PLAIN:
        plain = faiss.read_index(str(scratch / "plain.graph"))
        parameters = faiss.SearchParametersHNSW(efSearch=SEARCHED)
        search = partial(plain.search, k=K, params=parameters)
        vectors = FaissGraph(plain).vectors
        scores, _ = search(queries)
    else:
        search = partial(index.search, k=K)
        vectors = np.concatenate([shard.vectors for shard in index.shards])
        scores = search(queries).scores
    exact, _ = nearest(queries, vectors, K)
    recall = float((scores >= exact[:, -1:] - 1e-5).mean())
    del vectors

    def turn() -> Figures:
        numbers = iter(range(1_000_000_000))
        done = repeat(lambda: search(queries[next(numbers) % QUERIES][None]), 1, 3.0)
        return {**done, "recall": recall}

    return turn


if __name__ == "__main__":
    main("benchmarks.index")
