"""What scoring in bfloat16 does to recall@10: one trained model in both precisions on a warehouse's held-out pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from deltalake import DeltaTable

from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import load_model
from itemsage_model.encoders.precision import Precision
from itemsage_model.evaluation import baselines
from itemsage_model.evaluation.recall import HeldOut, ranks
from itemsage_model.serving.scorer import Scorer
from schemas.cells import to_matrix
from schemas.records import read_record
from schemas.stages import TRAIN
from schemas.warehouse import Warehouse

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
_MOST_PAIRS = 10_000


def recall_in_bfloat16(warehouse: Path) -> tuple[float, str]:
    """Recall@10 in bfloat16 over that in float32, summed over the tasks; and what it was made of.

    Args:
        warehouse: What the pipeline has left.
    """
    model = load_model(read_record(Warehouse(str(warehouse)), TRAIN).metrics.model_uri, ItemTowerSpec)
    weights, spec = model.weights, model.spec
    features = _table(warehouse / "item_features").sort_by("item_key").combine_chunks()
    vectors = {}
    for precision in PRECISIONS:
        scorer = Scorer(weights, spec, precision=precision)
        vectors[precision] = np.concatenate([scorer.score_batch(batch) for batch in features.to_batches()])
    found = dict.fromkeys(PRECISIONS, 0.0)
    pairs = changed = 0
    for table in sorted(warehouse.glob("held_out_*")):
        held_out, queries = _held_out(table, features["item_key"].to_numpy())
        hit = {name: ranks(held_out, baselines.dot_product(queries, vectors[name])) <= 10 for name in PRECISIONS}
        for name in PRECISIONS:
            found[name] += float(held_out.weights[hit[name]].sum())
        pairs += len(held_out.query)
        changed += int((hit["float32"] != hit["bfloat16"]).sum())
    shares = f"{found['float32']:,.0f} hits in float32, {found['bfloat16']:,.0f} in bfloat16"
    return found["bfloat16"] / found["float32"], f"{pairs:,} pairs, {shares}; {changed} pairs changed sides"


def _held_out(table: Path, item_key: npt.NDArray[np.int64]) -> tuple[HeldOut, npt.NDArray[np.float32]]:
    """The first pairs of a held_out table against the whole catalog, and the vectors of their queries."""
    pairs = _table(table).slice(0, _MOST_PAIRS)
    ids, first, query = np.unique(pairs["query_id"].to_numpy(), return_index=True, return_inverse=True)
    shown = pairs["query_item_key"].to_numpy()[first]
    place = np.minimum(np.searchsorted(item_key, shown), len(item_key) - 1)
    held_out = HeldOut(
        query=torch.from_numpy(query.astype(np.int64)),
        positive=torch.from_numpy(np.searchsorted(item_key, pairs["item_key"].to_numpy())),
        query_item=torch.from_numpy(np.where(item_key[place] == shown, place, -1)),
        weights=torch.from_numpy(pairs["engagement_count"].to_numpy().astype(np.float32)),
        distractors=torch.ones(len(item_key), dtype=torch.bool),
    )
    queries = _table(table.parent / "query_embeddings").sort_by("query_id")
    rows = np.searchsorted(queries["query_id"].to_numpy(), ids)
    return held_out, to_matrix(queries["query_embedding"])[rows]


def _table(uri: Path) -> pa.Table:
    return DeltaTable(str(uri)).to_pyarrow_table()
