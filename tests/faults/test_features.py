"""The same features everywhere: golden hashes of what a worker of Spark's and this process make of 1,000 texts."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator

import mmh3
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from itemsage_model.encoders.hash_embedding import hash_slots
from itemsage_model.text.tokens import token_kinds
from jobs.transforms.keys import item_key

# Of all texts' tokens, of all texts' keys, and of the slots of 1,000 tokens: whoever changes one of them changes what
# models of before mean.
TOKENS = "7da99b3eb12ac8da4348f7713ae9182e"
KEYS = "0b4cfbcc2679353f973d761b65f0e22d"
SLOTS = "adf22e5863eb1250250528c79ec413fd"
ROWS = 75_707

ALPHABET = "abc XYZ019 äßé中文字日本語한국어🪔👍🏽\u0301\u200b\u00a0\ufeff-_.,#&/\n"


def texts() -> list[str]:
    """The empty text, and others of 1 to 24 characters of many scripts; drawn without NumPy, whose draws may change."""
    draw = random.Random(5)
    return ["", *("".join(draw.choice(ALPHABET) for _ in range(1 + number % 24)) for number in range(999))]


def digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, ensure_ascii=True).encode()).hexdigest()[:32]


@pytest.mark.fault(
    "E1", "recovered", "1,000 texts, empty to 24 characters, in many scripts: golden in worker and trainer"
)
@pytest.mark.fault("E4", "recovered", "the same, with combining, zero-width and no-break characters")
def test_a_worker_and_this_process_make_the_golden_tokens(spark: SparkSession) -> None:
    def tokens(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            made = [json.dumps(token_kinds(text)) for text in batch.column("text").to_pylist()]
            yield pa.RecordBatch.from_pydict({"number": batch.column("number"), "tokens": made})

    rows = spark.createDataFrame(list(enumerate(texts())), "number long, text string").repartition(3)
    found = rows.mapInArrow(tokens, "number long, tokens string").orderBy("number").collect()
    by_worker = [json.loads(row["tokens"]) for row in found]
    here = json.loads(json.dumps([token_kinds(text) for text in texts()]))
    assert by_worker == here
    assert digest(here) == TOKENS


@pytest.mark.fault("E1", "recovered", "1,000 ids in many scripts: their keys are the golden ones")
def test_keys_are_the_golden_ones(spark: SparkSession) -> None:
    rows = spark.createDataFrame(list(enumerate(texts())), "number long, item_id string")
    found = rows.select("number", item_key("item_id").alias("key")).orderBy("number").collect()
    assert digest([row["key"] for row in found]) == KEYS
    assert rows.where(F.col("item_id").isNull()).count() == 0


@pytest.mark.fault("E2", "loud", "signed hashes, another seed, another way to make them positive: not the golden slots")
def test_other_hashes_are_not_the_golden_ones() -> None:
    def slots(seed: int, make: Callable[[int], int], *, signed: bool = False) -> str:
        keys = [number.to_bytes(4, "little") for number in range(1_000)]
        return digest([[make(mmh3.hash(key, seed + k, signed=signed)) % ROWS for k in range(3)] for key in keys])

    assert digest(hash_slots(1_000, ROWS, 3).tolist()) == slots(0, int) == SLOTS
    for other in (slots(0, int, signed=True), slots(1, int), slots(0, abs, signed=True)):
        assert other != SLOTS
