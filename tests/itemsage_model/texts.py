"""A tiny transformer over the words of a few texts, and warehouses on which a text encoder can be trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the extra sentence-transformers is not installed")

from itemsage_model.encoders.query_tower import QueryTowerSpec
from itemsage_model.encoders.text_transformer import TextSpec
from itemsage_model.training.text_start import _word_pieces

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
TEXT_SPEC = TextSpec(CONFIG, _word_pieces(TEXTS), "mean", 32)
TOWER_SPEC = QueryTowerSpec(TEXT_SPEC, "scratch", "st-1", True, 256, 20, 24, -1, 14.0, 100.0)
KEYS = np.arange(len(TEXTS), dtype=np.int64)[::-1].copy()
"""Of the texts, not in their order."""
