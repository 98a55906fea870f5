"""What a head over picture vectors finds beside the vectors it stands on: recall@10 of held-out pairs, with intervals.

    python -m experiments.picture_head --settings FILE [--set section.key=value ...] [--base WAREHOUSE]

Reads what a warehouse holds after build_training_tables and train_pictures: picture_features, the head, and the
held_out_<task> tables of tasks whose queries show an item. The query is the product that it shows, by the mean of its
pictures; all other products with pictures compete. Rows: the encoder's vectors, the same less their mean, and the
head's; each over all pairs, and over those whose product is in no training pair.

With --base, a warehouse of the same shop, settings and seed, trained without a head: recall@10 of the item tower
in both, by their tables `evaluation`, task by task.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from experiments.graph_vectors import Floats, Rows, hits, interval
from itemsage_model.data.picture_batches import picture_format
from itemsage_model.data.pinned_files import pin_version
from itemsage_model.data.ragged import Ragged
from itemsage_model.data.reader import read_catalog
from itemsage_model.encoders.model_files import load_model
from itemsage_model.encoders.picture_tower import PictureTowerSpec
from itemsage_model.serving.picture_scorer import head_vectors
from schemas.command_line import settings_of, settings_parser
from schemas.picture_tables import PICTURE_FEATURES, PICTURE_PAIRS
from schemas.records import read_record
from schemas.settings import Settings
from schemas.stages import BUILD_PICTURE_PAIRS, BUILD_TRAINING_TABLES, EVALUATE, TRAIN_PICTURES
from schemas.storage import read_columns
from schemas.tables import EVALUATION
from schemas.warehouse import Warehouse

_MOST_PAIRS = 20_000


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


def recalls(warehouse: str) -> dict[tuple[str, str], tuple[float, float, float]]:
    """(task, slice) -> recall@10 of the item tower, and its interval."""
    version = read_record(Warehouse(warehouse), EVALUATE).output(EVALUATION.name)
    names = ["task", "slice", "system", "metric", "value", "low", "high"]
    rows = read_columns(version.uri, version.version, names).to_pylist()
    own = [row for row in rows if row["system"] == "itemsage" and row["metric"] == "recall@10"]
    return {(row["task"], row["slice"]): (row["value"], row["low"], row["high"]) for row in own}


def print_towers(base: str, head: str) -> None:
    """The table of item towers, and the mean over the tasks."""
    on_base, on_head = recalls(base), recalls(head)
    print("\n| task | pairs | item tower on the encoder | on the head |\n| --- | --- | --- | --- |")
    sums: dict[str, list[npt.NDArray[np.float64]]] = {}
    for task, part in sorted(on_base.keys() & on_head.keys(), key=lambda key: (key[1], key[0])):
        figures = on_base[task, part], on_head[task, part]
        said = (f"{value:.4f} [{low:.4f}, {high:.4f}]" for value, low, high in figures if low is not None)
        print(f"| {task} | {part} | {' | '.join(said)} |")
        sums.setdefault(part, []).append(np.array([figures[0][0], figures[1][0]]))
    for part, both in sums.items():
        first, second = np.mean(both, axis=0)
        print(f"| mean | {part} | {first:.4f} | {second:.4f} |")


def main() -> None:
    """Print the tables."""
    parser = settings_parser("experiments.picture_head", __doc__)
    parser.add_argument("--base", default="", help="warehouse of the item tower without a head")
    arguments = parser.parse_args()
    settings = settings_of(arguments)
    print_vectors(settings)
    if arguments.base:
        print_towers(arguments.base, settings.warehouse.uri)


if __name__ == "__main__":
    main()
