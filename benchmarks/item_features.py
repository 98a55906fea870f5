"""Row 6: build_item_features against the same job with the same tokeniser as an ordinary row-wise Python UDF.

The demo shop's texts (twelve features, about 250 tokens an item, several scripts), with a model number of its own in
every title. Words repeat as a shop's words do, and ours looks a piece of text up once: the ratio rests on that. Ours is
the job's `build`. The other reads, checks and joins the items in the same way, and has a Python UDF that takes a row's
texts, asks the same definition of tokens (`token_kinds`), looks every token up in a dictionary and returns the ids as
lists. It makes no hash and no packed cells; a UDF that packs its ids takes a third less time (docs/lab-log.md). No item
has images: those cost both the same. Time counts from the opened session to the written rows; Python workers start and
load the vocabulary within it. The UDF runs on few items, on the same once more and on an eighth of the catalog; what it
would have taken for the whole is the first run, and for each further item what the third took on top of the second.
For information it does so again with Spark's own options of the JVM, which suit it better than our spark-defaults.conf.

    python -m benchmarks.item_features [--rounds N] [--small]
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from benchmarks.contest import Contender, Figures, Row, Turn, compete, judge, require
from benchmarks.report import Options, main, print_outcome
from benchmarks.spark_tables import STOCK_JVM, session
from itemsage_model.text.tokenizer import pack_vocabulary
from itemsage_model.text.tokens import token_kinds
from jobs import build_item_features
from jobs.demo_world.shop import Codebook, generator, make_items
from jobs.demo_world.words import item_texts
from jobs.runtime import publish
from jobs.runtime.kept_files import part_count
from jobs.transforms.item_sources import split
from jobs.transforms.items import split_items
from schemas.presets import demo
from schemas.settings import Settings
from schemas.spark import conform, struct_type
from schemas.storage import data_files
from schemas.tables import ITEM_FEATURES, ITEM_TEXT_EMBEDDINGS, ITEMS, TEXT_FEATURES

OURS, ROW_WISE, STOCK = "build_item_features", "row-wise Python UDF", "the same, Spark's own JVM options"
WHOLE, EIGHTH, FEW = "items", "an eighth", "few items"
_COUNTED_ITEMS = 3000
_MOST_MADE = 60_000
"""Items whose texts are made; a larger catalog repeats them, each under a title of its own."""


def rows(options: Options) -> Iterator[Row]:
    """Write the items and the vocabulary, then let them take turns."""
    count = options.choose(600_000, 4000)
    write_items(options.scratch, count)
    contenders = [
        Contender(OURS, job_turn, (options.scratch,)),
        Contender(ROW_WISE, udf_turn, (options.scratch, ROW_WISE, {})),
        Contender(STOCK, udf_turn, (options.scratch, STOCK, STOCK_JVM)),
    ]
    outcome = compete(contenders, options.rounds or 5)
    print_outcome(f"features of {count} items", "items", outcome)
    tokens = check_ids(options.scratch, count)
    print(f"  the token ids of {min(count // 8, _MOST_MADE)} items are equal: {tokens:.0f} an item")
    yield judge("6", "build_item_features, items/s", ROW_WISE, outcome.ratios(OURS, ROW_WISE), at_least=5)
    yield judge("6", "build_item_features, items/s", f"{ROW_WISE}, {STOCK}", outcome.ratios(OURS, STOCK))


def write_items(scratch: Path, count: int) -> None:
    """Rows of ITEMS as Parquet, whole and in part, in two files each; a vocabulary counted on the first of them."""
    attributes = make_items(Codebook(1), 1, min(count, _MOST_MADE)).attributes
    random = generator(1, "texts")
    texts = [item_texts(item, random) for item in attributes]
    columns = {
        name: pa.array([text.get(name) for text in texts], pa.list_(pa.string()) if many else pa.string())
        for name, many in TEXT_FEATURES.items()
    }
    rows = np.arange(count)
    table = pa.table(columns).take(pa.array(rows % len(texts)))
    numbers = [f" {number:x}-{row}" for row, number in enumerate(random.integers(1 << 40, size=count).tolist())]
    titles = pc.binary_join_element_wise(table["title"], pa.array(numbers), "")
    table = table.set_column(table.schema.get_field_index("title"), "title", titles)
    table = table.add_column(0, "item_id", [[_item_id(row) for row in rows]])
    for name, rows_in in ((WHOLE, count), (EIGHTH, count // 8), (FEW, count // 40)):
        (scratch / name).mkdir()
        half = -(-rows_in // 2)
        for part in range(2):
            rows_of_part = table.slice(part * half, min(half, rows_in - part * half))
            pq.write_table(rows_of_part, scratch / name / f"part-{part}.parquet")
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

    def write(items: DataFrame) -> None:
        no_embeddings = items.sparkSession.createDataFrame([], struct_type(ITEM_TEXT_EMBEDDINGS))
        usable = split(items, None, settings, 1)
        rows = build_item_features.build(usable, no_embeddings, vocabulary, settings, part_count(1))
        publish.write_worker_rows(rows, str(scratch / OURS), ITEM_FEATURES, note={"run_id": OURS})

    def turn() -> Figures:
        (seconds,) = _seconds(OURS, scratch, [WHOLE], write)
        return {"units": _count(_files(scratch, OURS)), "seconds": seconds}

    return turn


def udf_turn(scratch: Path, name: str, jvm: dict[str, str]) -> Turn:
    """One Python call a row."""
    packed = (scratch / "vocabulary").read_bytes()

    def write(items: DataFrame) -> None:
        shared = items.sparkSession.sparkContext.broadcast(packed)
        known: list[list[dict[str, int]]] = []

        @F.udf(returnType=T.ArrayType(T.ArrayType(T.IntegerType())))
        def tokenise(*texts: str) -> list[list[int]]:
            if not known:  # unpickled once a task
                known.append(unpack(shared.value))
            return [token_ids(text, known[0]) for text in texts]

        rows = _texts(items).select("item_id", tokenise(*TEXT_FEATURES).alias("token_ids"))
        rows.write.mode("overwrite").parquet(str(scratch / name))

    def turn() -> Figures:
        cold, warm, longer = _seconds(name, scratch, [FEW, FEW, EIGHTH], write, **jvm)
        whole, eighth, few = (_count(map(str, (scratch / catalog).iterdir())) for catalog in (WHOLE, EIGHTH, FEW))
        return {"units": whole, "seconds": cold + (longer - warm) / (eighth - few) * (whole - few)}

    return turn


def _seconds(
    name: str, scratch: Path, catalogs: list[str], write: Callable[[DataFrame], None], **jvm: str
) -> list[float]:
    """How long one catalog after the other takes in one session."""
    seconds = []
    for catalog in catalogs:
        for file in (scratch / catalog).iterdir():
            file.read_bytes()  # into the system's cache, whoever went before
    with session(name, scratch, **jvm) as spark:
        for catalog in catalogs:
            started = time.perf_counter()
            write(conform(spark.read.parquet(str(scratch / catalog)), ITEMS))
            seconds.append(time.perf_counter() - started)
    return seconds


def _texts(items: DataFrame) -> DataFrame:
    usable, _ = split_items(items)
    return usable.select("item_id", *[F.concat_ws(" ", name).alias(name) for name in TEXT_FEATURES])


def unpack(packed: bytes) -> list[dict[str, int]]:
    """Token -> id, for each kind."""
    kinds = [kind.split("\n") for kind in packed.decode().split("\0")]
    numbers = iter(range(sum(map(len, kinds))))
    return [dict(zip(kind, islice(numbers, len(kind)), strict=True)) for kind in kinds]


def token_ids(text: str, vocabulary: list[dict[str, int]]) -> list[int]:
    """The ids of one text, kind by kind."""
    return [
        known[token]
        for known, tokens in zip(vocabulary, token_kinds(text), strict=True)
        for token in tokens
        if token in known
    ]


def check_ids(scratch: Path, count: int) -> float:
    """Every text of the first items that both have has the same ids from both, apart from their order.

    Returns:
        Tokens an item.
    """
    compared = min(count // 8, _MOST_MADE)
    first = [("item_id", "<", _item_id(compared))]
    ours, theirs = (
        pa.concat_tables(pq.read_table(file, filters=first) for file in _files(scratch, name)).sort_by("item_id")
        for name in (OURS, ROW_WISE)
    )
    require(ours["item_id"].equals(theirs["item_id"]) and len(ours) == compared, "other items")
    for name, rows_in in ((OURS, count), (ROW_WISE, count // 8)):
        require(_count(_files(scratch, name)) == rows_in, f"not all items are there from {name}")
    texts = theirs["token_ids"].combine_chunks().flatten()
    cells = {name: b"".join(ours[name].to_pylist()) for name in ("text_token_ids", "text_token_counts")}
    counts = np.frombuffer(cells["text_token_counts"], "<i4")
    require(np.array_equal(counts, pc.list_value_length(texts)), "a text has another number of tokens")
    text = np.repeat(np.arange(len(counts)), counts)
    both = (np.frombuffer(cells["text_token_ids"], "<i4"), texts.flatten().to_numpy())
    require(np.array_equal(*(ids[np.lexsort((ids, text))] for ids in both)), "an item has other token ids")
    return len(text) / len(ours)


def _item_id(row: int) -> str:
    return f"item-{row:09}"


def _joined(text: str | list[str] | None) -> str:
    return text or "" if isinstance(text, str | None) else " ".join(text)


def _count(files: Iterable[str]) -> int:
    return sum(pq.read_metadata(file).num_rows for file in files)


def _files(scratch: Path, name: str) -> list[str]:
    folder = scratch / name
    return data_files(str(folder)) if name != ROW_WISE else sorted(map(str, folder.glob("*.parquet")))


if __name__ == "__main__":
    main("benchmarks.item_features")
