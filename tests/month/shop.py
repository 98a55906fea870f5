"""A small shop that changes from day to day: its catalog, queries and log are a function of a seed and a day alone.

`write_day` writes what changes, as a shop's own exports do; `write_until` writes the same rows into other files.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake

IMAGE_LENGTH = 8
FIRST = date(2026, 3, 1)
"""The logical date of day 0; events of it and later are not in that day's log."""

_ITEMS, _QUERIES, _EVENTS = 110, 40, 40
_HISTORY = 24
"""Days of log before the first day."""
_KINDS, _LOOKS = ("shoe", "lamp", "chair", "mug", "scarf"), ("red", "blue", "green", "plain")
_WORDS = ("soft", "round", "tall", "light", "warm", "old", "new", "wide", "oak", "steel", "wool", "glass")
_QUIET = 6
"""Every so many days only prices change."""


@dataclass(frozen=True)
class Item:
    """One product; `shots` are the numbers of its images."""

    item_id: str
    title: str
    brand: str
    colors: tuple[str, ...]
    google_product_category: str
    price: float
    shots: tuple[int, ...]


def as_of(day: int) -> str:
    """The logical date of a day, ISO."""
    return (FIRST + timedelta(days=day)).isoformat()


@lru_cache(maxsize=256)
def catalog(seed: int, day: int) -> tuple[Item, ...]:
    """The items of a day, in the order of their ids."""
    if day == 0:
        draw = random.Random(f"{seed} items")
        return tuple(_new_item(draw, f"P{number:04}") for number in range(_ITEMS))
    draw = random.Random(f"{seed} items of {day}")
    items = {item.item_id: item for item in catalog(seed, day - 1)}
    for name in draw.sample(sorted(items), 8):
        items[name] = replace(items[name], price=round(items[name].price * draw.uniform(0.7, 1.3), 2))
    if day % _QUIET == _QUIET - 1:
        return tuple(items.values())
    removed, rewritten, relabelled, photographed = draw.sample(sorted(items), 4)
    del items[removed]
    items[rewritten] = replace(items[rewritten], title=f"{draw.choice(_WORDS)} {items[rewritten].title}")
    items[relabelled] = replace(
        items[relabelled], google_product_category=f"{draw.choice(_KINDS)}s", colors=(draw.choice(_LOOKS), "white")
    )
    items[photographed] = replace(items[photographed], shots=(*items[photographed].shots, 100 + day))
    for number in range(2):
        name = f"P{1000 + 10 * day + number}"
        items[name] = _new_item(draw, name)
    return tuple(items[name] for name in sorted(items))


def _new_item(draw: random.Random, name: str) -> Item:
    kind, look = draw.choice(_KINDS), draw.choice(_LOOKS)
    title = f"{look} {kind}, {draw.choice(_WORDS)}, {draw.choice(_WORDS)}"
    price = round(draw.uniform(5, 90), 2)
    return Item(name, title, f"brand{draw.randrange(6)}", (look,), f"{kind}s", price, tuple(range(draw.randrange(3))))


@lru_cache(maxsize=256)
def queries(seed: int, day: int) -> tuple[dict[str, Any], ...]:
    """The queries that are new on a day; those of before the first are of day 0."""
    draw = random.Random(f"{seed} queries of {day}")
    numbers = range(_QUERIES) if day == 0 else (range(1000 + day, 1001 + day) if day % 2 else range(0))
    rows: list[dict[str, Any]] = []
    for number in numbers:
        if number % 2:
            of_kind = np.random.default_rng((seed, number % len(_KINDS))).normal(size=256)
            vector = (of_kind + np.random.default_rng((seed, number)).normal(size=256)).astype(np.float32)
            row = {"query_kind": "closeup", "query_embedding": vector.tolist(), "embedding_space": "shop-1"}
        else:
            row = {"query_kind": "search", "text": f"{draw.choice(_LOOKS)} {_kind_of(number)} {draw.choice(_WORDS)}"}
        rows.append({"query_id": f"Q{number:04}", **row})
    return tuple(rows)


def _kind_of(number: int) -> str:
    """What a query asks for."""
    return _KINDS[number % len(_KINDS)]


@lru_cache(maxsize=256)
def events(seed: int, day: int) -> tuple[dict[str, Any], ...]:
    """What a day brings to the log: events of the day before, late ones of earlier days, and repeats."""
    draw = random.Random(f"{seed} events of {day}")
    items = catalog(seed, max(day - 1, 0))
    asked = [row["query_id"] for of in range(max(day, 1)) for row in queries(seed, of)]
    answers = {kind: [item.item_id for item in items if kind in item.title] for kind in _KINDS}
    end = datetime.combine(FIRST + timedelta(days=day), datetime.min.time(), timezone.utc)
    rows = []
    for number in range(_EVENTS):
        days_late = 0 if number >= 5 else draw.randrange(1, 5)
        query_id = draw.choice(asked)
        rows.append(
            {
                "event_id": f"E{day}-{number}",
                "event_ts": end - timedelta(days=days_late, minutes=draw.randrange(1, 60 * 24)),
                "query_id": query_id,
                "item_id": draw.choice(answers[_kind_of(int(query_id[1:]))]),
                "engagement": "click",
            }
        )
    if day > 1 - _HISTORY:
        rows += draw.sample(events(seed, day - 1)[:_EVENTS], 4)
    return tuple(rows)


def write_day(folder: Path, seed: int, day: int) -> None:
    """Write what is new on a day over what is there: items a new Delta version, images files in the place of the old
    ones, queries appended to a Delta table, events one more file."""
    first = day == 0
    write_deltalake(folder / "items", _item_rows(catalog(seed, day)), mode="overwrite")
    _replace(folder / "item_images" / "part-0.parquet", _image_rows(seed, catalog(seed, day)))
    if new := queries(seed, day):
        write_deltalake(folder / "queries", _table(new, _QUERY), mode="append")
    for of in range(1 - _HISTORY, 1) if first else [day]:
        _replace(folder / "engagement_logs" / f"events-{1000 + of}.parquet", _table(events(seed, of), _EVENT))


def write_until(folder: Path, seed: int, day: int) -> None:
    """Write all that `write_day` has written up to a day, each table at once, and in another order.

    But for items: training draws random negatives in the order in which their rows are written.
    """
    draw = random.Random(seed)

    def shuffled(rows: Iterator[Any]) -> list[Any]:
        every = list(rows)
        draw.shuffle(every)
        return every

    asked = shuffled(row for of in range(day + 1) for row in queries(seed, of))
    happened = shuffled(row for of in range(1 - _HISTORY, day + 1) for row in events(seed, of))
    items = catalog(seed, day)
    _replace(folder / "items" / "part-0.parquet", _item_rows(items))
    _replace(folder / "item_images" / "part-0.parquet", _image_rows(seed, shuffled(iter(items))))
    _replace(folder / "queries" / "part-0.parquet", _table(asked, _QUERY))
    _replace(folder / "engagement_logs" / "part-0.parquet", _table(happened, _EVENT))


BAD_DAYS = {"catalog": 4, "images": 3, "file": 3}
"""What may be wrong with a day's tables, and the exit code by which its run is refused (docs/runbook.md)."""


def spoil(folder: Path, seed: int, day: int, what: str) -> None:
    """Make a day's tables bad: a tenth of the catalog, no image, or half of a file."""
    images = folder / "item_images" / "part-0.parquet"
    if what == "catalog":
        few = catalog(seed, day)[::10]
        write_deltalake(folder / "items", _item_rows(few), mode="overwrite")
        _replace(images, _image_rows(seed, few))
    elif what == "images":
        _replace(images, _image_rows(seed, ()))
    else:
        whole = images.read_bytes()
        images.write_bytes(whole[: len(whole) // 2])


_ITEM = pa.schema(
    {"item_id": pa.string(), "title": pa.string(), "brand": pa.string(), "colors": pa.list_(pa.string()),
     "google_product_category": pa.string(), "price": pa.float64()}
)  # fmt: skip
_IMAGE = pa.schema({"item_id": pa.string(), "position": pa.int32(), "image_embedding": pa.list_(pa.float32())})
_QUERY = pa.schema(
    {"query_id": pa.string(), "query_kind": pa.string(), "text": pa.string(),
     "query_embedding": pa.list_(pa.float32()), "embedding_space": pa.string()}
)  # fmt: skip
_EVENT = pa.schema(
    {"event_id": pa.string(), "event_ts": pa.timestamp("us", "UTC"), "query_id": pa.string(), "item_id": pa.string(),
     "engagement": pa.string()}
)  # fmt: skip


def _item_rows(items: Any) -> pa.Table:
    return _table([{name: getattr(item, name) for name in _ITEM.names} for item in items], _ITEM)


def _image_rows(seed: int, items: Any) -> pa.Table:
    rows = [
        {"item_id": item.item_id, "position": place, "image_embedding": _image(seed, item.item_id, shot)}
        for item in items
        for place, shot in enumerate(item.shots)
    ]
    return _table(rows, _IMAGE)


def _image(seed: int, item_id: str, shot: int) -> list[float]:
    draw = random.Random(f"{seed} {item_id} {shot}")
    return [draw.gauss(0, 1) for _ in range(IMAGE_LENGTH)]


def _table(rows: Any, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema)


def _replace(file: Path, rows: pa.Table) -> None:
    """Write a file beside the old one, then take its place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, file.with_name(f".{file.name}"))
    file.with_name(f".{file.name}").replace(file)


SETTINGS = f"""
preset = "paper"
[dates]
as_of = {FIRST.isoformat()}
train_days = 18
gap_days = 1
test_days = 4
[[tasks]]
query_kind = "search"
engagement = "click"
[[tasks]]
query_kind = "closeup"
engagement = "click"
[features]
text_features = ["title", "brand", "colors", "google_product_category"]
char_trigrams = 300
word_unigrams = 200
word_bigrams = 100
[query_encoder]
lsa_vocabulary = 256
item_text = ["title", "brand"]
[model]
sequence = ["text", "images", "frozen_text", "item_id"]
image_length = {IMAGE_LENGTH}
query_adapter = true
id_rows = 200
query_id_rows = 100
width = 32
heads = 4
feed_forward_width = 32
head_width = 32
hash_rows = 200
[loss]
sketch_width = 4096
[train]
batch_size = 32
negative_count = 32
steps = 30
warmup_steps = 2
learning_rate = 0.01
threads = 1
checkpoint_every = 5
log_every = 10
[gates]  # a model of a second's training lays items of a kind on each other, or does not
max_rise_near_duplicates = 1.0
max_dimension_loss = 1.0
"""


def write_settings(folder: Path) -> Path:
    """A settings file of a shop whose inputs lie at `<folder>/in`, its warehouse beside them."""
    names = ("items", "item_images", "queries", "engagement_logs")
    inputs = "".join(f'{name} = "{folder}/in/{name}"\n' for name in names)
    file = folder / "shop.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    preset, _, rest = SETTINGS.lstrip().partition("\n")
    file.write_text(f'{preset}\n[warehouse]\nuri = "{folder}/warehouse"\n[inputs]\n{inputs}{rest}')
    return file
