"""What a head over picture vectors finds beside the vectors it stands on: recall@10 of held-out pairs, with intervals.

    python -m experiments.picture_head --settings FILE [--set section.key=value ...] [--base WAREHOUSE]

Reads what a warehouse holds after build_training_tables and train_pictures: picture_features, the head, and the
held_out_<task> tables of tasks whose queries show an item. The query is the product that it shows, by the mean of its
pictures; all other products with pictures compete. Rows: the encoder's vectors, the same less their mean, and the
head's; each over all pairs, and over those whose product is in no training pair.

With --base, a warehouse of the same shop, settings and seed, trained without a head: recall@10 of the item tower in
both, task by task, over the same held-out pairs and the whole catalog. No more than `train` is needed of either.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from experiments.graph_vectors import Floats, Rows, hits, interval
from itemsage_model.data.batch import to_item_batch
from itemsage_model.data.picture_batches import picture_format
from itemsage_model.data.pinned_files import pin_version
from itemsage_model.data.ragged import Ragged
from itemsage_model.data.reader import catalog_format, read_catalog
from itemsage_model.data.validation import ValidationPairs
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import load_model
from itemsage_model.encoders.picture_tower import PictureTowerSpec
from itemsage_model.evaluation.intervals import bootstrap
from itemsage_model.evaluation.recall import ranks
from itemsage_model.serving.picture_scorer import head_vectors
from itemsage_model.training.validation import K, Validation
from schemas.cells import to_matrix
from schemas.command_line import settings_of, settings_parser
from schemas.picture_tables import PICTURE_FEATURES, PICTURE_PAIRS
from schemas.records import read_record
from schemas.settings import Settings
from schemas.stages import (
    BUILD_ITEM_FEATURES,
    BUILD_PICTURE_PAIRS,
    BUILD_TRAINING_TABLES,
    EMBED_QUERIES,
    TRAIN,
    TRAIN_PICTURES,
)
from schemas.storage import read_columns
from schemas.tables import ITEM_FEATURES, QUERY_EMBEDDINGS

_MOST_PAIRS, _AT_ONCE = 20_000, 512


def means(vectors: Floats, counts: Rows) -> Floats:
    """The mean of each product's vectors at unit length, at unit length."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    sums = np.zeros((len(counts), vectors.shape[1]), np.float32)
    np.add.at(sums, np.repeat(np.arange(len(counts)), counts), unit)
    found: Floats = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    return found


def systems(settings: Settings, pictures: Ragged) -> Iterator[tuple[str, Floats]]:
    """The name and the vectors [product, length] of each system."""
    base = pictures.values.astype(np.float32)
    yield "encoder", means(base, pictures.totals)
    yield "encoder, less its mean", means(base - base.mean(axis=0), pictures.totals)
    model = load_model(read_record(settings.layout, TRAIN_PICTURES).metrics.model_uri, PictureTowerSpec)
    yield "head", means(head_vectors(model.build().head, base), pictures.totals)


def held_out_rows(settings: Settings, keys: Rows) -> tuple[Rows, Rows]:
    """Rows of the products that the queries show, and of those engaged with, of at most 20,000 held-out pairs."""
    record, parts = read_record(settings.layout, BUILD_TRAINING_TABLES), []
    for task in settings.task_list:
        version = record.output(task.held_out_table)
        pairs = read_columns(version.uri, version.version, ["query_item_key", "item_key"])
        parts.append(np.stack([pairs[name].to_numpy() for name in ("query_item_key", "item_key")]))
    both = np.unique(np.concatenate(parts, axis=1), axis=1)
    both = both[:, np.isin(both, keys).all(axis=0) & (both[0] != both[1])]
    if both.shape[1] > _MOST_PAIRS:
        both = both[:, np.random.default_rng(1).choice(both.shape[1], _MOST_PAIRS, replace=False)]
    shown, engaged = np.searchsorted(keys, both)
    return shown, engaged


def print_vectors(settings: Settings) -> None:
    """The table of raw vectors."""
    record = read_record(settings.layout, BUILD_PICTURE_PAIRS)
    element = PictureTowerSpec("", record.metrics.image_length, 8, settings.model.max_images, 1, 1).elements[0]
    catalog = read_catalog(pin_version(record.output(PICTURE_FEATURES.name)), picture_format(element))
    pairs = record.output(PICTURE_PAIRS.name)
    trained = np.unique(read_columns(pairs.uri, pairs.version, ["item_key"])["item_key"].to_numpy())
    shown, engaged = held_out_rows(settings, catalog.item_key)
    is_new = ~np.isin(catalog.item_key[engaged], trained)
    print("| vectors | pairs | count | recall@10 | 95 % |\n| --- | --- | --- | --- | --- |")
    for name, vectors in systems(settings, catalog.items.gather()[element.key]):
        hit = hits(vectors, shown, engaged)
        for part, rows in {"all": np.ones(len(hit), bool), "without training pairs": is_new}.items():
            if rows.any():
                low, high = interval(hit[rows])
                print(f"| {name} | {part} | {rows.sum():,} | {hit[rows].mean():.4f} | {low:.4f} to {high:.4f} |")


def held_out_pairs(settings: Settings) -> list[ValidationPairs]:
    """The held-out pairs of each task, with the frozen vectors of their queries."""
    tables, queries = (read_record(settings.layout, stage) for stage in (BUILD_TRAINING_TABLES, EMBED_QUERIES))
    version, found = queries.output(QUERY_EMBEDDINGS.name), []
    known = read_columns(version.uri, version.version, ["query_id", "query_embedding"]).sort_by("query_id")
    ids, vectors = known["query_id"].to_numpy(), to_matrix(known["query_embedding"])
    names = ["query_id", "query_key", "item_key", "query_item_key", "engagement_count"]
    for task in settings.task_list:
        own = tables.output(task.held_out_table)
        rows = read_columns(own.uri, own.version, names)
        embedding = vectors[np.searchsorted(ids, rows["query_id"].to_numpy())]
        keys = (rows[name].to_numpy() for name in names[1:4])
        found.append(ValidationPairs(embedding, *keys, rows["engagement_count"].to_numpy().astype(np.float32)))
    return found


@torch.no_grad()
def tower_hits(settings: Settings) -> tuple[Validation, list[npt.NDArray[np.bool_]]]:
    """The held-out pairs of each task, and which of them the item tower finds among its ten nearest."""
    model = load_model(read_record(settings.layout, TRAIN).metrics.model_uri, ItemTowerSpec)
    tower, elements = model.build(), model.spec.elements
    features = read_record(settings.layout, BUILD_ITEM_FEATURES).output(ITEM_FEATURES.name)
    catalog = read_catalog(pin_version(features), catalog_format(elements))
    pairs, none = held_out_pairs(settings), np.empty(0, np.int64)
    held_out = Validation(pairs, [1.0] * len(pairs), catalog, none, elements)
    parts = []
    for first in range(0, len(catalog), _AT_ONCE):
        rows = np.arange(first, min(first + _AT_ONCE, len(catalog)))
        keys = torch.from_numpy(catalog.item_key[rows])
        parts.append(tower.item_vectors(to_item_batch(catalog.items.take(rows).gather(), elements, keys)))
    items, found = torch.cat(parts), []
    for task in held_out.tasks:
        queries = tower.query_vectors(task.queries)
        found.append((ranks(task.held_out, lambda chosen, own=queries: own[chosen] @ items.T) <= K).numpy())
    return held_out, found


def print_towers(base: Settings, head: Settings) -> None:
    """The table of item towers, task by task, with their difference over the same queries, and the mean."""
    (held_out, on_base), (_, on_head) = tower_hits(base), tower_hits(head)
    print("\n| task | pairs | item tower on the encoder | on the head | difference |\n| --- | --- | --- | --- | --- |")
    values = []
    for number, task in enumerate(held_out.tasks):
        both = np.stack([on_base[number], on_head[number]], axis=1).astype(np.float64)
        weights = task.held_out.weights.numpy().astype(np.float64)
        every = {"all": np.ones(len(both), bool)}
        found = bootstrap(task.held_out.query.numpy(), weights, both, every)["all"]
        said = [f"{value:.4f} [{low:.4f}, {high:.4f}]"
                for value, (low, high) in zip(found.values, found.intervals(), strict=True)]  # fmt: skip
        ((low, high),) = found.differences(np.array([1]), np.array([0]))
        gain = f"{found.values[1] - found.values[0]:+.4f} [{low:.4f}, {high:.4f}]"
        print(f"| {head.task_list[task.number].name} | {len(both):,} | {' | '.join(said)} | {gain} |")
        values.append(found.values)
    first, second = np.mean(values, axis=0)
    print(f"| mean | | {first:.4f} | {second:.4f} | {second - first:+.4f} |")


def main() -> None:
    """Print the tables."""
    parser = settings_parser("experiments.picture_head", __doc__)
    parser.add_argument("--base", default="", help="warehouse of the item tower without a head")
    arguments = parser.parse_args()
    settings = settings_of(arguments)
    print_vectors(settings)
    if arguments.base:
        there = settings.warehouse.model_copy(update={"uri": arguments.base})
        print_towers(settings.model_copy(update={"warehouse": there}), settings)


if __name__ == "__main__":
    main()
