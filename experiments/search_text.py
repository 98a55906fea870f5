"""What a text encoder of one's own is worth: search recall with it, and of the item tower on it, beside its base.

    python -m experiments.search_text --folder search-text --transformer FOLDER [--only demo] [--seeds 1 2 3]
        [--online-retail by-day.tar.xz] [--set search_text.steps=300 ...] [--encoder-only]

Each shop is prepared once, with the pretrained encoder as its frozen one. Then, once a seed, in copies of that
warehouse: the item tower on the base; the text encoder trained; and the item tower on that, from embed_queries on. What
is done is kept in the folder, one JSON file a shop and seed; with --encoder-only no item tower is trained. Compared is
recall@10 of the held-out window among the whole catalog, weighted by engagements, of all pairs, of texts and of items
that no training pair has.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from deltalake import DeltaTable, write_deltalake

from itemsage_model.data.batch import to_item_batch
from itemsage_model.data.pinned_files import pin_version
from itemsage_model.data.reader import catalog_format, read_catalog
from itemsage_model.encoders.frozen_text.trained import TrainedEncoder
from itemsage_model.encoders.model_files import load_model
from itemsage_model.encoders.query_tower import QueryTowerSpec
from pipeline.commands import ROOT, environment, spark_submit, train_command
from schemas.cells import to_matrix, unpack_cells
from schemas.records import read_record
from schemas.settings import Settings, load_settings
from schemas.stages import BUILD_ITEM_FEATURES, TRAIN_QUERY_ENCODER
from schemas.storage import read_columns
from schemas.tables import EMBEDDING_DIM, ITEM_FEATURES

_TO_FEATURES = ("embed_queries", "embed_items", "build_vocabulary", "build_item_features", "build_training_tables")
_TO_VECTORS = ("train", "validate", "score_catalog")
_WITHOUT_TOWER = "-encoder"
"""What the name of a result ends with that has no item tower."""
_K = 10
_NEW_ONE_IN = 10
SLICES = ("all", "unseen_queries", "unseen_items")
SYSTEMS = ("base", "fine_tuned", "fine_tuned_sides", "tower_on_base", "tower_on_fine_tuned")


@dataclass(frozen=True)
class Shop:
    """How a shop's tables come about.

    Attributes:
        settings: Its settings file, from the project's root.
        prepare: The job that makes its input tables.
        kind: The query kind whose texts are trained on.
        needs_archive: Whether the archive of Online Retail must be given.
    """

    settings: str
    prepare: str
    kind: str
    needs_archive: bool = False


SHOPS = {
    "demo": Shop("experiments/search_text.toml", "jobs/make_demo_world.py", "search"),
    "online-retail": Shop(
        "examples/online_retail/settings.toml", "examples/online_retail/prepare.py", "closeup", needs_archive=True
    ),
}


@dataclass(frozen=True)
class Vectors:
    """Vectors by id.

    Attributes:
        row_of: Id -> row.
        rows: float32 [row, 256].
    """

    row_of: dict[str, int]
    rows: npt.NDArray[np.float32]


@dataclass(frozen=True)
class HeldOut:
    """The held-out pairs of one query kind, and which texts and items training has seen.

    Attributes:
        query_ids, item_ids: Of each pair.
        weights: Engagements of each pair.
        is_unseen_query: Whether no training pair has the query's text.
        is_unseen_item: Whether no training pair has the item.
        shown: The item that the query shows, of each pair; empty = none.
    """

    query_ids: list[str]
    item_ids: list[str]
    weights: npt.NDArray[np.float64]
    is_unseen_query: npt.NDArray[np.bool_]
    is_unseen_item: npt.NDArray[np.bool_]
    shown: list[str]


def held_out(settings: Settings, kind: str) -> HeldOut:
    """The held-out pairs of a kind's tasks, end to end."""
    tasks = [task for task in settings.task_list if task.query_kind == kind]
    columns = ["query_id", "item_id", "engagement_count"]
    pairs = pa.concat_tables([_read(settings, task.held_out_table, columns) for task in tasks])
    seen = pa.concat_tables([_read(settings, task.training_table, columns[:2]) for task in tasks])
    queries = _read(settings, "queries", ["query_id", "text", "query_item_id"]).to_pydict()
    text_of = dict(zip(queries["query_id"], queries["text"], strict=True))
    shown_of = dict(zip(queries["query_id"], queries["query_item_id"], strict=True))
    seen_texts = {text_of[query_id] for query_id in seen["query_id"].unique().to_pylist()}
    query_ids = pairs["query_id"].to_pylist()
    return HeldOut(
        query_ids,
        pairs["item_id"].to_pylist(),
        pairs["engagement_count"].to_numpy().astype(np.float64),
        np.array([text_of[query_id] not in seen_texts for query_id in query_ids]),
        ~pc.is_in(pairs["item_id"], seen["item_id"].unique()).to_numpy(),
        [shown_of[query_id] or "" for query_id in query_ids],
    )


def recalls(pairs: HeldOut, queries: Vectors, items: Vectors) -> dict[str, float]:
    """Recall@10 of each slice: the item a query shows is no candidate, equal scores count against the pair."""
    names = sorted({query_id for query_id in pairs.query_ids if query_id in queries.row_of})
    place = {name: row for row, name in enumerate(names)}
    hits = np.zeros(len(pairs.weights))
    scores = queries.rows[[queries.row_of[name] for name in names]] @ items.rows.T
    for number, (query_id, item_id, shown) in enumerate(zip(pairs.query_ids, pairs.item_ids, pairs.shown, strict=True)):
        if query_id not in place or item_id not in items.row_of:
            continue
        row = scores[place[query_id]]
        own = items.row_of[item_id]
        ahead = int((row >= row[own]).sum()) - 1
        if shown in items.row_of and shown != item_id:
            ahead -= int(row[items.row_of[shown]] >= row[own])
        hits[number] = ahead < _K
    masks = {
        "all": np.ones(len(hits), bool), "unseen_queries": pairs.is_unseen_query, "unseen_items": pairs.is_unseen_item,
    }  # fmt: skip
    return {
        name: float((hits * pairs.weights)[mask].sum() / max(pairs.weights[mask].sum(), 1e-12))
        for name, mask in masks.items()
    }


def frozen(settings: Settings, kind: str) -> tuple[Vectors, Vectors]:
    """Frozen vectors of the queries of a kind, and of the items' texts."""
    queries = _read(settings, "query_embeddings", ["query_id", "query_kind", "query_embedding"])
    queries = queries.filter(pc.equal(queries["query_kind"], kind))
    items = _read(settings, "item_text_embeddings", ["item_id", "text_embedding"])
    items = items.filter(pc.greater(pc.binary_length(items["text_embedding"]), 0))
    numbers, _ = unpack_cells(items["text_embedding"], "<f2")
    return (
        _vectors(queries["query_id"], to_matrix(queries["query_embedding"])),
        _vectors(items["item_id"], numbers.reshape(-1, EMBEDDING_DIM).astype(np.float32)),
    )


def encoded(settings: Settings, kind: str) -> tuple[Vectors, Vectors]:
    """The same by the trained encoder itself, without the jobs that embed."""
    model = load_model(read_record(settings.layout, TRAIN_QUERY_ENCODER).metrics.model_uri, QueryTowerSpec)
    weights = {name: values.numpy() for name, values in model.build().text.state_dict().items()}
    encoder = TrainedEncoder(model.spec.text, weights)
    queries = _read(settings, "queries", ["query_id", "query_kind", "text"])
    queries = queries.filter(pc.equal(queries["query_kind"], kind)).drop_null()
    items = _read(settings, "item_text_pairs", ["item_id", "text"])
    return (
        _vectors(queries["query_id"], encoder.encode(queries["text"].to_pylist())),
        _vectors(items["item_id"], encoder.encode(items["text"].to_pylist())),
    )


def of_tower(settings: Settings, kind: str) -> tuple[Vectors, Vectors]:
    """Published vectors of the queries of a kind, and of the items."""
    queries = _read(settings, "query_vectors", ["query_id", "query_kind", "query_vector"])
    queries = queries.filter(pc.equal(queries["query_kind"], kind))
    items = _read(settings, "item_embeddings", ["item_id", "embedding"])
    return (
        _vectors(queries["query_id"], to_matrix(queries["query_vector"])),
        _vectors(items["item_id"], to_matrix(items["embedding"])),
    )


def item_side(settings: Settings) -> Vectors:
    """The items as the trained text encoder's other side sees them, from images and frozen texts of the base."""
    model = load_model(read_record(settings.layout, TRAIN_QUERY_ENCODER).metrics.model_uri, QueryTowerSpec)
    output = read_record(settings.layout, BUILD_ITEM_FEATURES).output(ITEM_FEATURES.name)
    catalog = read_catalog(pin_version(output), catalog_format(model.spec.elements))
    keys = read_columns(output.uri, output.version, ["item_id", "item_key"]).to_pydict()
    id_of = dict(zip(keys["item_key"], keys["item_id"], strict=True))
    with torch.inference_mode():
        rows = model.build().item_vectors(to_item_batch(catalog.items.gather(), model.spec.elements)).numpy()
    return Vectors({id_of[key]: row for row, key in enumerate(catalog.item_key.tolist())}, rows)


def _vectors(ids: pa.ChunkedArray, rows: npt.NDArray[np.float32]) -> Vectors:
    return Vectors({name: row for row, name in enumerate(ids.to_pylist())}, rows)


def _read(settings: Settings, table: str, columns: list[str]) -> pa.Table:
    return DeltaTable(settings.table_uri(table)).to_pyarrow_table(columns=columns)


# ---------------------------------------------------------------- running


@dataclass(frozen=True)
class Run:
    """Commands in a folder, with the settings of one shop.

    Attributes:
        shop: The shop.
        sets: `section.key=value` of all of them.
        archive: Of Online Retail.
    """

    shop: Shop
    sets: tuple[str, ...]
    archive: str

    def settings(self, warehouse: Path, *more: str) -> list[str]:
        """The arguments that every stage takes."""
        sets = (f"warehouse.uri={warehouse.resolve()}", *self.sets, *more)
        return ["--settings", str(ROOT / self.shop.settings), *(part for one in sets for part in ("--set", one))]

    def loaded(self, warehouse: Path) -> Settings:
        """The settings themselves."""
        return load_settings(ROOT / self.shop.settings, [f"warehouse.uri={warehouse.resolve()}", *self.sets])

    def stages(self, warehouse: Path, stages: Sequence[str], *more: str) -> None:
        """Run stages in one Spark session."""
        arguments = [*self.settings(warehouse, *more), "--stages", ",".join(stages)]
        command = spark_submit("pipeline/one_session.py", arguments)
        subprocess.run(command, check=True, env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL)


def prepare(run: Run, warehouse: Path) -> None:
    """The shop's tables, with searches that nobody has embedded, up to the pairs of texts and items.

    One query in ten is new in the held-out window: what happened after it before is taken out of the log.
    """
    data = ["--data", run.archive] if run.shop.needs_archive else []
    command = spark_submit(run.shop.prepare, [*run.settings(warehouse), *data])
    subprocess.run(command, check=True, env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL)
    settings = run.loaded(warehouse)
    uri, log = settings.table_uri("queries"), settings.table_uri("engagement_logs")
    queries, events = DeltaTable(uri).to_pyarrow_table(), DeltaTable(log).to_pyarrow_table()
    new = [name for name in queries["query_id"].to_pylist() if zlib.crc32(str(name).encode()) % _NEW_ONE_IN == 0]
    is_early = pc.less(events["event_ts"], pa.scalar(settings.dates.test_start, events["event_ts"].type))
    is_new = pc.is_in(events["query_id"], pa.array(new))
    write_deltalake(log, events.filter(pc.invert(pc.and_(is_early, is_new))), mode="overwrite")
    if "query_embedding" in queries.schema.names and queries["query_embedding"].null_count < len(queries):
        kept = queries.drop(["query_embedding", "embedding_space"]).filter(
            pc.equal(queries["query_kind"], run.shop.kind)
        )
        write_deltalake(uri, kept, mode="overwrite", schema_mode="overwrite")
    run.stages(warehouse, [*_TO_FEATURES, "build_query_pairs"])


def measure(run: Run, base: Path, seed: int, *, with_tower: bool) -> dict[str, Any]:
    """Everything of one seed, in two copies of the prepared warehouse; without the item towers in one."""
    figures: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    kind = run.shop.kind
    on_base, own = (base.with_name(f"{base.name}-{seed}-{name}") for name in ("base", "own"))
    for copy in (on_base, own) if with_tower else (own,):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(base, copy)
    pairs = held_out(run.loaded(base), kind)
    figures["base"] = recalls(pairs, *frozen(run.loaded(base), kind))
    print(f"  base {figures['base']}", flush=True)
    started = time.monotonic()
    arguments = run.settings(own, f"train.seed={seed}")
    subprocess.run(train_command(arguments, TRAIN_QUERY_ENCODER.name), check=True, env=environment(), cwd=ROOT)
    seconds["train_query_encoder"] = time.monotonic() - started
    sides = item_side(run.loaded(own))
    if with_tower:
        run.stages(own, [*_TO_FEATURES, *_TO_VECTORS], "query_encoder.kind=trained", f"train.seed={seed}")
    queries, texts = frozen(run.loaded(own), kind) if with_tower else encoded(run.loaded(own), kind)
    figures["fine_tuned"] = recalls(pairs, queries, texts)
    figures["fine_tuned_sides"] = recalls(pairs, queries, sides)
    if with_tower:
        figures["tower_on_fine_tuned"] = recalls(pairs, *of_tower(run.loaded(own), kind))
        run.stages(on_base, _TO_VECTORS, f"train.seed={seed}")
        figures["tower_on_base"] = recalls(pairs, *of_tower(run.loaded(on_base), kind))
    print(f"  {figures}", flush=True)
    trained = read_record(run.loaded(own).layout, TRAIN_QUERY_ENCODER).metrics
    return {"figures": figures, "seconds": seconds, "steps": trained.steps, "choice": trained.choice, "sets": run.sets}


def report(folder: Path, names: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """The table in Markdown: a row a shop and slice; means over the seeds, whose number stands behind each."""
    lines = [f"| shop | slice | {' | '.join(SYSTEMS)} | fine-tuned / base | tower on fine-tuned / on base | seeds |"]
    lines.append("| --- " * (len(SYSTEMS) + 5) + "|")
    for name in names:
        found = [figures for seed in seeds if (figures := _figures(folder, name, seed))]
        for part in SLICES if found else ():
            values = {system: [one[system][part] for one in found if system in one] for system in SYSTEMS}
            cells = [f"{mean(some):.4f} ({len(some)})" if some else "-" for some in values.values()]
            pairs = (("fine_tuned", "base"), ("tower_on_fine_tuned", "tower_on_base"))
            ratios = [_ratio(values[own], values[other]) for own, other in pairs]
            lines.append(f"| {name} | {part} | {' | '.join([*cells, *ratios])} | {len(found)} |")
    return lines


def _figures(folder: Path, name: str, seed: int) -> dict[str, dict[str, float]]:
    """What was measured of a shop and seed: with the item towers, or else without; nothing yet = empty."""
    for end in ("", _WITHOUT_TOWER):
        path = folder / f"{name}-{seed}{end}.json"
        if path.exists():
            found: dict[str, dict[str, float]] = json.loads(path.read_text())["figures"]
            return found
    return {}


def _ratio(own: list[float], other: list[float]) -> str:
    """How the means compare; nothing where one of them was not measured, or nothing was found."""
    return f"{mean(own) / mean(other):.3f}" if own and other and mean(other) else "-"


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("search-text"), help="where everything is kept")
    parser.add_argument("--transformer", required=True, help="folder of the pretrained encoder")
    parser.add_argument("--online-retail", default="", help="the archive of daily CSV files")
    parser.add_argument("--only", nargs="+", choices=SHOPS, default=list(SHOPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--encoder-only", action="store_true", help="no item towers")
    parser.add_argument("--set", action="append", default=[], dest="sets", help="section.key=value, for every stage")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        shop = SHOPS[name]
        if shop.needs_archive and not arguments.online_retail:
            print(f"left out: {name} needs --online-retail FILE")
            continue
        folder = str(Path(arguments.transformer).resolve())
        of_shop = ("query_encoder.kind=sentence_transformers", f"query_encoder.folder={folder}",
                   f"search_text.folder={folder}", f'search_text.query_kinds=["{shop.kind}"]')  # fmt: skip
        run, base = Run(shop, (*of_shop, *arguments.sets), arguments.online_retail), arguments.folder / name
        if not (base / "_runs" / "build_query_pairs.json").exists():
            prepare(run, base)
        for seed in arguments.seeds:
            end = _WITHOUT_TOWER if arguments.encoder_only else ""
            result = arguments.folder / f"{name}-{seed}{end}.json"
            if not result.exists():
                found = measure(run, base, seed, with_tower=not arguments.encoder_only)
                result.write_text(json.dumps(found, indent=1))
    print("\n".join(["", *report(arguments.folder, arguments.only, arguments.seeds)]))


if __name__ == "__main__":
    main()
