"""A tiny transformer over the words of a few texts, and warehouses on which a text encoder can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

pytest.importorskip("transformers", reason="the extra sentence-transformers is not installed")

from itemsage_model.encoders.query_tower import QueryTowerSpec
from itemsage_model.encoders.text_transformer import TextSpec
from itemsage_model.training.text_start import word_pieces
from schemas.checksums import row_checksums
from schemas.metrics import QueryPairMetrics
from schemas.query_pair_tables import VALIDATION_QUERY_PAIRS
from schemas.records import RunRecord, write_record
from schemas.settings import Settings
from schemas.tables import ROW_CHECKSUM
from tests.itemsage_model.factories import write_pairs
from tests.itemsage_model.warehouses import entry, make_warehouse

TEXTS = (
    "red shoes", "RED  Shoes, size 42!", "rde sheos", "DIN 912 M6x20", "新款跑鞋红色", "красная кружка",
    "الحذاء الأحمر",
    "👟❤️",
    "a very long description of one red shoe with laces and a sole " * 8, "mug",
)  # fmt: skip
CONFIG: dict[str, Any] = {
    "model_type": "bert", "vocab_size": 8_000, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0,
}  # fmt: skip
TEXT_SPEC = TextSpec(CONFIG, word_pieces(TEXTS), "mean", 32)
TOWER_SPEC = QueryTowerSpec(TEXT_SPEC, "scratch", "st-1", True, 256, 20, 24, -1, 14.0, 100.0)
KEYS = np.arange(len(TEXTS), dtype=np.int64)[::-1].copy()
"""Of the texts, not in their order."""


def make_text_warehouse(place: Path, *, validated: int = 0, **own: Any) -> Settings:
    """A warehouse after build_query_pairs, written without Spark: text i is engaged with one item again and again.

    Args:
        place: Folder of the warehouse.
        validated: How many rows of query_pairs, its last, are of the validation window alone.
        own: Keys of [search_text] that differ from those of a small encoder from scratch.
    """
    wanted = {"item_text_share": 0.0, "item_width": 16, "max_tokens": 16, "batch_size": 8, "negative_count": 8,
              "steps": 12, "warmup_steps": 2, "learning_rate": 1e-3, "validate_every": 0} | own  # fmt: skip
    settings = make_warehouse(place, {"click": [20]}, search_text=wanted | {"query_kinds": ["closeup"]})
    rows, streams = (40, 17), {}
    for seed, name in ((7, "query_pairs"), (8, "item_text_pairs")):
        late = tuple(range(sum(rows) - validated, sum(rows))) if name == "query_pairs" else ()
        write_pairs(place / name, list(rows), seed=seed, late=late)
        pairs = DeltaTable(place / name).to_pyarrow_table().sort_by("query_key")
        texts = pa.array([f"word{key} of item {item}" for key, item in
                          zip(pairs["query_key"].to_pylist(), pairs["item_key"].to_pylist(), strict=True)])  # fmt: skip
        named = pairs.set_column(0, "text", texts)
        write_deltalake(str(place / name), named, mode="overwrite", schema_mode="overwrite")
        streams[name] = named
    measured = streams["query_pairs"].slice(sum(rows) - max(validated, 1), max(validated, 1))
    columns = [name for name in VALIDATION_QUERY_PAIRS.column_names if name != ROW_CHECKSUM]
    (batch,) = measured.select(columns).combine_chunks().to_batches()
    checked = pa.Table.from_batches([batch]).append_column(
        ROW_CHECKSUM, pa.array(row_checksums(batch, VALIDATION_QUERY_PAIRS))
    )
    write_deltalake(str(place / VALIDATION_QUERY_PAIRS.name), checked)
    outputs = [entry(place, name, 1, sum(rows)) for name in streams]
    outputs.append(entry(place, VALIDATION_QUERY_PAIRS.name, 0, len(checked) if validated else 0))
    record = RunRecord(
        "build_query_pairs", QueryPairMetrics("pinsage-1"), outputs=tuple(outputs),
        inputs=(entry(place, "item_features", 0, 20),),
        made_with={"vocabulary": "abc", "space of closeup queries": "pinsage-1", "space of item text": "pinsage-1"},
    )  # fmt: skip
    write_record(settings.layout, record)
    return settings
