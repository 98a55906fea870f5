"""Row 5: the scoring job against what a user would otherwise write, and against a program without Spark.

The whole job on local[2], in items a second from the opened session to the committed table: Python workers, imports
and the loading of the model included. 20 images and about 300 tokens an item, the paper's model. Ours is the job, on
item_features. The others read the same items as plain columns and use the plain encoder: `predict_batch_udf`,
`mapInPandas`, Ray Data's `map_batches` (in packages of its own, where they can be installed); scoring_jobs.py says how
their time for the whole catalog follows from fewer items. The ceiling is one program of two processes over the files
of ours: pyarrow, the project's scorer, a Parquet file each. All must come to the same vectors.

    python -m benchmarks.score_catalog [--rounds N] [--small]
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from benchmarks.contest import Contender, Figures, Outcome, Row, Turn, compete, judge, require
from benchmarks.report import Options, main, print_outcome
from benchmarks.scoring_jobs import Work, map_in_pandas_turn, predict_batch_udf_turn, ray_turn
from benchmarks.spark_tables import session
from benchmarks.synthetic import Catalog, item_ids, write_item_features, write_plain
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import load_model, save_model
from itemsage_model.serving.scorer import Scorer
from jobs import score_catalog
from schemas.cells import to_list_column, to_matrix
from schemas.elements import FEATURE_CELLS
from schemas.metrics import ItemMetrics, TrainMetrics
from schemas.presets import paper
from schemas.records import RunRecord, TableVersion, write_record
from schemas.settings import LossSettings, Settings
from schemas.storage import data_files
from schemas.warehouse import Warehouse

OURS, CEILING = "score_catalog", "two processes, pyarrow + scorer"
OTHERS = {"predict_batch_udf": predict_batch_udf_turn, "mapInPandas": map_in_pandas_turn, "Ray Data": ray_turn}
TOLERANCE = 1e-4


def rows(options: Options) -> Iterator[Row]:
    """Write the tables and the model, then let all of them score."""
    work = prepare(options)
    contenders = [
        Contender(OURS, job_turn, (work,)),
        *(Contender(name, enter, (work,)) for name, enter in OTHERS.items()),
        Contender(CEILING, program_turn, (work,)),
    ]
    outcome = compete(contenders, options.rounds or 5)
    print_outcome(f"scoring {work.catalog.items} items, whole job", "items", outcome)
    check_vectors(work, outcome)
    best = outcome.fastest(list(OTHERS))
    for name in OTHERS:
        if name in outcome.absent:
            yield Row("5", "score_catalog, items/s", name, None, None, None, "", None, outcome.absent[name])
        else:
            bar = 10 if name == best else None
            against = f"{name}, the best of them" if name == best else name
            yield judge("5", "score_catalog, items/s", against, outcome.ratios(OURS, name), at_least=bar)
    yield judge("5", "score_catalog, items/s", CEILING, outcome.ratios(OURS, CEILING), at_least=0.5)


def prepare(options: Options) -> Work:
    """A warehouse as the stages before would leave it, and the first items as plain columns."""
    sizes, feature_sizes = paper()
    catalog = Catalog(options.choose(98_304, 4096), feature_sizes)
    few = options.choose(3072, 512)
    warehouse = options.scratch / "warehouse"
    write_item_features(warehouse / "item_features", catalog)
    write_plain(options.scratch / "plain", catalog, few, rows_per_file=few // 2)
    write_plain(options.scratch / "tiny", catalog, 64, rows_per_file=32)
    spec = ItemTowerSpec(sizes, LossSettings(), feature_sizes, catalog.vocabulary_size, {})
    model_uri, model_id = save_model(str(warehouse / "models"), spec.build(), spec, {})
    features = TableVersion("item_features", str(warehouse / "item_features"), 0, catalog.items)
    made = ItemMetrics(catalog.vocabulary_size, "synthetic")
    layout = Warehouse(str(warehouse))
    write_record(layout, RunRecord("build_item_features", made, outputs=(features,)))
    write_record(layout, RunRecord("train", TrainMetrics(model_id, model_uri, "synthetic")))
    return Work(catalog, model_uri, options.scratch, few)


def job_turn(work: Work) -> Turn:
    """The job, in a session of its own."""
    settings = Settings.model_validate(
        {
            "warehouse": {"uri": str(work.scratch / "warehouse")},
            "dates": {"as_of": "2026-03-01", "train_days": 20, "test_days": 7},
        }
    )

    def turn() -> Figures:
        with session(OURS, work.scratch) as spark:
            started = time.perf_counter()
            score_catalog.run(spark, settings)
            return {"units": work.catalog.items, "seconds": time.perf_counter() - started}

    return turn


def program_turn(work: Work) -> Turn:
    """Two processes, started in every turn, each with half of the files."""
    files = data_files(str(work.scratch / "warehouse" / "item_features"))
    folder = work.scratch / CEILING
    folder.mkdir()
    context = multiprocessing.get_context("spawn")

    def turn() -> Figures:
        started = time.perf_counter()
        processes = [
            context.Process(target=score_files, args=(files[half::2], work.model_uri, folder / f"{half}.parquet"))
            for half in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            require(process.exitcode == 0, "a process of the plain program failed")
        return {"units": work.catalog.items, "seconds": time.perf_counter() - started}

    return turn


def score_files(files: list[str], model_uri: str, target: Path) -> None:
    """Score some files of item_features into one Parquet file."""
    torch.set_num_threads(1)
    model = load_model(model_uri, ItemTowerSpec)
    weights, spec = model.weights, model.spec
    scorer = Scorer(weights, spec)
    writer = None
    for file in files:
        batches = pq.ParquetFile(file).iter_batches(1024, columns=["item_id", *FEATURE_CELLS], use_threads=False)
        for batch in batches:
            columns = [batch.column("item_id"), to_list_column(scorer.score_batch(batch))]
            table = pa.Table.from_arrays(columns, ["item_id", "embedding"])
            writer = writer or pq.ParquetWriter(target, table.schema, use_dictionary=False, write_statistics=False)
            writer.write_table(table)
    if writer:
        writer.close()


def check_vectors(work: Work, outcome: Outcome) -> None:
    """All contenders' vectors of the items that all of them scored agree, and nobody left an item out."""
    folders = {OURS: work.scratch / "warehouse" / "item_embeddings", CEILING: work.scratch / CEILING}
    wanted = item_ids(np.arange(work.few))
    ours = None
    for name in outcome.performances:
        folder = folders.get(name, work.scratch / name)
        is_delta = (folder / "_delta_log").exists()
        files = data_files(str(folder)) if is_delta else sorted(map(str, folder.glob("*.parquet")))
        table = pa.concat_tables(pq.read_table(file, columns=["item_id", "embedding"]) for file in files)
        kept = table.filter(pc.is_in(table["item_id"], wanted)).sort_by("item_id")
        count = work.catalog.items if name in folders else work.few
        require(len(table) == count and len(kept) == work.few, f"{name} scored {len(table)} of {count} items")
        vectors = to_matrix(kept["embedding"])
        ours = vectors if ours is None else ours
        difference = float(np.abs(vectors - ours).max())
        require(difference <= TOLERANCE, f"{name}: a vector differs by {difference:.1e}")
    print(f"  the vectors of {', '.join(outcome.performances)} agree within {TOLERANCE:g}")


if __name__ == "__main__":
    main("benchmarks.score_catalog")
