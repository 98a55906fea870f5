"""Row 6: build_item_features against the same job with the same tokeniser as an ordinary row-wise Python UDF.

The demo shop's texts (twelve features, about 250 tokens an item, several scripts), with a model number of its own in
every title, so that some pieces of text are new in every row. Ours is the job's `build`. The other reads, checks, joins
and writes in the same way and makes the same columns, but with a Python UDF: it takes a row's texts, asks the same
definition of tokens (`token_kinds`), looks every token up in a dictionary and packs the row. No item has images: those
cost both the same. Time counts from the opened session; its Python workers start and load the vocabulary within it.

    python -m benchmarks.item_features [--rounds N] [--small]
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import functions as F

from benchmarks.contest import Contender, Figures, Row, Turn, compete, judge, require
from benchmarks.report import Options, main, print_outcome
from benchmarks.spark_tables import session
from itemsage_model.config import demo
from itemsage_model.tokenizer import pack_vocabulary, token_kinds
from jobs import build_item_features
from jobs.demo_shop import Codebook, generator, make_items
from jobs.demo_words import item_texts
from jobs.transforms.items import joined_texts, split_items
from schemas.settings import Settings
from schemas.spark import conform
from schemas.tables import ITEM_FEATURES, ITEMS, TEXT_FEATURES

OURS, ROW_WISE = "build_item_features", "row-wise Python UDF"
_COUNTED_ITEMS = 3000
_UDF_COLUMNS = (
    "text_token_ids binary, text_token_counts binary, image_embeddings binary, out_of_vocabulary_count int, "
    "features_hash string"
)


def rows(options: Options) -> Iterator[Row]:
    """Write the items and the vocabulary, then let both tokenise."""
    count = options.choose(60_000, 4000)
    write_items(options.scratch, count)
    contenders = [Contender(OURS, job_turn, (options.scratch,)), Contender(ROW_WISE, udf_turn, (options.scratch,))]
    outcome = compete(contenders, options.rounds or 6)
    print_outcome(f"features of {count} items", "items", outcome)
    tokens = check_ids(options.scratch, count)
    print(f"  the token ids of all {count} items are equal: {tokens / count:.0f} an item")
    yield judge("6", "build_item_features, items/s", ROW_WISE, outcome.ratios(OURS, ROW_WISE), at_least=5)


def write_items(scratch: Path, count: int) -> None:
    """Rows of ITEMS as Parquet, in two files, and a vocabulary counted on the first of them."""
    attributes = make_items(Codebook(1), 1, count).attributes
    random = generator(1, "texts")
    texts = [item_texts(item, random) for item in attributes]
    for row, text in enumerate(texts):
        text["title"] = f"{text['title']} {random.integers(1 << 40):x}-{row}"
    columns = {
        name: pa.array([text.get(name) for text in texts], pa.list_(pa.string()) if many else pa.string())
        for name, many in TEXT_FEATURES.items()
    }
    table = pa.table({"item_id": [f"item-{row:09}" for row in range(count)], **columns})
    (scratch / "items").mkdir()
    half = -(-count // 2)
    for part in range(2):
        pq.write_table(table.slice(part * half, half), scratch / "items" / f"part-{part}.parquet")
    (scratch / "vocabulary").write_bytes(pack_vocabulary(*count_vocabulary(texts[:_COUNTED_ITEMS])))


def count_vocabulary(texts: list[dict[str, str | list[str] | None]]) -> list[list[str]]:
    """The most frequent tokens of each kind, at the demo's sizes."""
    counters: tuple[Counter[str], ...] = (Counter(), Counter(), Counter())
    for item in texts:
        for text in item.values():
            for counter, tokens in zip(counters, token_kinds(_joined(text)), strict=True):
                counter.update(tokens)
    _, features = demo()
    limits = (features.char_trigrams, features.word_unigrams, features.word_bigrams)
    return [[token for token, _ in counter.most_common(n)] for counter, n in zip(counters, limits, strict=True)]


def job_turn(scratch: Path) -> Turn:
    """The job's own `build`, without images."""
    settings = Settings.model_validate(
        {
            "warehouse": {"uri": str(scratch)},
            "dates": {"as_of": "2026-03-01", "train_days": 20, "test_days": 7},
            "inputs": {"has_images": False},
            "model": {"sequence": ["text"]},
        }
    )
    vocabulary = (scratch / "vocabulary").read_bytes()

    def turn() -> Figures:
        with session(OURS, scratch) as spark:
            started = time.perf_counter()
            items = conform(spark.read.parquet(str(scratch / "items")), ITEMS)
            features = build_item_features.build(items, None, vocabulary, settings).features
            features.write.mode("overwrite").parquet(str(scratch / OURS))
            return {"units": _count(scratch, OURS), "seconds": time.perf_counter() - started}

    return turn


def udf_turn(scratch: Path) -> Turn:
    """One Python call a row."""
    packed = (scratch / "vocabulary").read_bytes()

    def turn() -> Figures:
        with session(ROW_WISE, scratch) as spark:
            started = time.perf_counter()
            shared = spark.sparkContext.broadcast(packed)
            known: list[list[dict[str, int]]] = []

            @F.udf(returnType=_UDF_COLUMNS)
            def features(*texts: str) -> tuple[object, ...]:
                if not known:  # unpickled once a task
                    known.append(unpack(shared.value))
                return row_features(texts, known[0])

            usable, _ = split_items(conform(spark.read.parquet(str(scratch / "items")), ITEMS))
            texts = joined_texts(usable, list(TEXT_FEATURES))
            made = texts.select("item_id", features(*TEXT_FEATURES).alias("made")).select("item_id", "made.*")
            keyed = made.withColumn("item_key", F.xxhash64("item_id")).select(*ITEM_FEATURES.column_names)
            keyed.write.mode("overwrite").parquet(str(scratch / ROW_WISE))
            return {"units": _count(scratch, ROW_WISE), "seconds": time.perf_counter() - started}

    return turn


def unpack(packed: bytes) -> list[dict[str, int]]:
    """Token -> id, for each kind."""
    kinds = [kind.split("\n") for kind in packed.decode().split("\0")]
    numbers = iter(range(sum(map(len, kinds))))
    return [dict(zip(kind, islice(numbers, len(kind)), strict=True)) for kind in kinds]


def row_features(texts: tuple[str, ...], vocabulary: list[dict[str, int]]) -> tuple[object, ...]:
    """One row of item_features without its id: the fields of `_UDF_COLUMNS`."""
    ids: list[int] = []
    counts = []
    missing = 0
    for text in texts:
        before = len(ids)
        for known, tokens in zip(vocabulary, token_kinds(text), strict=True):
            ids += [known[token] for token in tokens if token in known]
            missing += len(tokens)
        counts.append(len(ids) - before)
    cells = (struct.pack(f"<{len(ids)}i", *ids), struct.pack(f"<{len(counts)}i", *counts), b"")
    lengths = struct.pack("<3q", *map(len, cells))
    digest = mmh3.mmh3_x64_128_digest(lengths + b"".join(cells), 0).hex()
    return *cells, missing - len(ids), digest


def check_ids(scratch: Path, count: int) -> int:
    """Every text of every item has the same ids from both, apart from their order; returns the number of tokens."""
    ours, theirs = (pq.read_table(scratch / name).sort_by("item_id") for name in (OURS, ROW_WISE))
    require(len(ours) == len(theirs) == count, f"{len(ours)} and {len(theirs)} of {count} items")
    for name in ("item_id", "item_key", "text_token_counts", "image_embeddings", "out_of_vocabulary_count"):
        require(ours[name].equals(theirs[name]), f"{name} differs")
    counts = np.frombuffer(b"".join(ours["text_token_counts"].to_pylist()), "<i4")
    text = np.repeat(np.arange(len(counts)), counts)
    ids = [np.frombuffer(b"".join(table["text_token_ids"].to_pylist()), "<i4") for table in (ours, theirs)]
    sorted_ids = [numbers[np.lexsort((numbers, text))] for numbers in ids]
    require(np.array_equal(*sorted_ids), "an item has other token ids")
    return len(text)


def _joined(text: str | list[str] | None) -> str:
    return text or "" if isinstance(text, str | None) else " ".join(text)


def _count(scratch: Path, name: str) -> int:
    return sum(pq.read_metadata(file).num_rows for file in (scratch / name).glob("*.parquet"))


if __name__ == "__main__":
    main("benchmarks.item_features")
