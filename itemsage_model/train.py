"""Train the item tower on the training tables that build_training_tables last completed.

    torchrun --nproc-per-node 2 -m itemsage_model.train --settings pipeline.toml [--set section.key=value]

Reads: training_<task> and item_features at the versions that the run records name, item_counts.
Writes: `<warehouse>/models/<model_id>/` (safetensors + JSON), checkpoints while it runs, TensorBoard, its run record.
Safe to rerun: the same inputs and settings resume from the last checkpoint of an unfinished run.

Exit codes: 0 done; 1 unexpected failure, a retry resumes; 2 settings; 3 bad input, a retry will not help.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from itemsage_model.data.batch import PairBatch
from itemsage_model.data.mixing import CPU, CatalogBatches, MixedBatches, pairs_per_task
from itemsage_model.data.pinned_files import TableFiles, pin_files
from itemsage_model.data.prefetch import Ahead
from itemsage_model.data.reader import CatalogItems, CatalogStream, RowFormat, RowStream
from itemsage_model.encoders.item_tower import parameter_counts
from itemsage_model.encoders.model_files import CheckpointError, ModelSpec, save_model
from itemsage_model.training import distributed
from itemsage_model.training.checkpoint import checkpoint_steps, load_checkpoint, save_checkpoint
from itemsage_model.training.frequency import CountMinSketch, ExactFrequency
from itemsage_model.training.objective import Objective
from itemsage_model.training.progress import Progress
from itemsage_model.training.trainer import Trainer
from schemas.errors import SettingsError, TableError
from schemas.records import read_record, recorded_output, write_record
from schemas.settings import Settings, load_settings
from schemas.storage import data_files, file_system
from schemas.tables import ITEM_COUNTS, ITEM_FEATURES

STAGE = "train"


@dataclass(frozen=True)
class Inputs:
    """The pinned tables of a run.

    Attributes:
        tasks: Files of each task's training table.
        catalog: Files of item_features.
        item_keys: int64 [item], sorted keys of the items with a training pair.
        item_shares: float64 [item], expected share of a batch's rows that have the item.
        spec: The model to train.
        entries: Table, version and rows of everything read.
    """

    tasks: list[TableFiles]
    catalog: TableFiles
    item_keys: npt.NDArray[np.int64]
    item_shares: npt.NDArray[np.float64]
    spec: ModelSpec
    entries: list[dict[str, Any]]


def pin_inputs(settings: Settings) -> Inputs:
    """Resolve every table to the version that the run records name.

    Raises:
        TableError: a stage has not run, or ran with other tasks or features.
    """
    warehouse = settings.warehouse.uri
    tables = read_record(warehouse, "build_training_tables")
    features = read_record(warehouse, "build_item_features")
    queries = read_record(warehouse, "embed_queries")
    entries = [recorded_output(tables, entry.task.training_table) for entry in settings.tasks]
    entries += [recorded_output(features, ITEM_FEATURES.name), recorded_output(tables, ITEM_COUNTS.name)]
    *task_entries, catalog, counts = entries
    kinds = {entry.query_kind for entry in settings.tasks}
    spaces = {kind: space for kind, space in queries["figures"]["embedding_spaces"].items() if kind in kinds}
    spec = ModelSpec(
        settings.model, settings.loss, settings.features, int(features["figures"]["vocabulary_size"]), spaces
    )
    keys, shares = _item_shares(counts, settings)
    return Inputs(
        [pin_files(e["table"], e["uri"], e["version"]) for e in task_entries],
        pin_files(catalog["table"], catalog["uri"], catalog["version"]),
        keys,
        shares,
        spec,
        entries,
    )


def _item_shares(counts: dict[str, Any], settings: Settings) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Expected share of a batch's rows per item: the sum over tasks of T_k / B * (pairs of the item / of the task)."""
    table = pq.ParquetDataset(data_files(counts["uri"], counts["version"])).read(
        columns=["item_key", "task", "pair_count"]
    )
    task = np.array(table["task"].to_pylist())
    pairs = table["pair_count"].to_numpy().astype(np.float64)
    sizes = pairs_per_task(settings.train.batch_size, [entry.share for entry in settings.tasks])
    share = np.zeros(len(pairs))
    for entry, size in zip(settings.tasks, sizes, strict=True):
        rows = task == entry.task.name
        share[rows] = size / settings.train.batch_size * pairs[rows] / pairs[rows].sum()
    keys, inverse = np.unique(table["item_key"].to_numpy(), return_inverse=True)
    return keys.astype(np.int64), np.bincount(inverse, share).astype(np.float64)


def make_batches(
    inputs: Inputs, settings: Settings, start_step: int, device: torch.device = CPU
) -> MixedBatches | CatalogBatches:
    """This rank's endless batches, in the CPU's memory, but for the catalog of a full softmax."""
    rank, ranks, train = distributed.rank(), distributed.world_size(), settings.train
    is_full = settings.loss.form == "full"
    with_items = RowFormat(len(settings.features.text_features), inputs.spec.vocabulary_size)
    row_format = RowFormat(with_items.text_count, with_items.vocabulary_size, with_items=not is_full)
    sizes = pairs_per_task(train.batch_size // ranks, [entry.share for entry in settings.tasks])
    pool = max(1, train.shuffle_rows // (len(sizes) + 1))
    streams = [
        RowStream(files, row_format, pool, train.seed, number, rank, ranks)
        for number, files in enumerate(inputs.tasks, 1)
    ]
    # item_features is sorted by item within a file: negatives of a small pool would be neighbours.
    catalog = CatalogStream(inputs.catalog, with_items, train.shuffle_rows, train.seed, 0, rank, ranks)
    if is_full:
        whole = _candidates(catalog.whole_table(), inputs, settings)
        return CatalogBatches(streams, sizes, whole, rank, ranks, settings.model.max_images, start_step, device)
    engaged = inputs.item_keys if train.negatives_from == "engaged" else None
    count = train.negative_count // ranks
    return MixedBatches(streams, sizes, catalog, count, engaged, settings.model.max_images, start_step)


def _candidates(whole: CatalogItems, inputs: Inputs, settings: Settings) -> CatalogItems:
    """The items of a full softmax: the catalog, or those with a training pair."""
    if settings.train.negatives_from == "catalog":
        return whole
    rows = np.flatnonzero(np.isin(whole.item_key, inputs.item_keys))
    return CatalogItems(whole.item_key[rows], whole.items.take(rows))


def make_objective(inputs: Inputs, settings: Settings, device: torch.device) -> Objective:
    """The loss with its frequencies."""
    loss = settings.loss
    frequency: CountMinSketch | ExactFrequency
    if loss.frequency == "sketch":
        frequency = CountMinSketch(loss.sketch_depth, loss.sketch_width)
    else:
        frequency = ExactFrequency(torch.from_numpy(inputs.item_keys), torch.from_numpy(inputs.item_shares))
    sampled = min(1.0, settings.train.negative_count / inputs.catalog.row_count)
    return Objective(loss, frequency, settings.train.batch_size, sampled).to(device)


def train(settings: Settings, device: torch.device) -> None:
    """Train, on this rank, to the end; rank 0 saves the model and the record."""
    started = time.monotonic()
    # torch says once that its sparse matrices, which sum the hash bags on a GPU, are in beta state and unchecked.
    warnings.filterwarnings("ignore", "Sparse ", UserWarning)
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(settings.train.threads or max(1, (os.cpu_count() or 1) // local_ranks))
    inputs = pin_inputs(settings)
    run_id = _run_id(inputs, settings)
    distributed.same_on_all_ranks("inputs and settings", run_id)
    tower = inputs.spec.build(seed=settings.train.seed).to(device)
    trainer = Trainer(tower, make_objective(inputs, settings, device), settings.train, len(settings.tasks))
    folder = f"{settings.warehouse.uri}/checkpoints/{run_id}"
    _resume(trainer, folder)
    is_first = distributed.rank() == 0
    names = [entry.task.name for entry in settings.tasks]
    if is_first:
        print(f"  parameters: {parameter_counts(tower)['total']:,}; run {run_id}", flush=True)
    progress = Progress(settings.train.steps, names, _tensorboard(settings, run_id), trainer.step) if is_first else None
    batches = _ahead(inputs, settings, trainer.step, device)

    def save() -> None:
        if is_first:
            save_checkpoint(folder, trainer.step, _state(trainer), trainer.optimizer, {"run_id": run_id})

    try:
        trainer.fit(batches, progress or (lambda _: None), save)
    finally:
        batches.close()
        if progress:
            progress.close()
    if progress:
        _finish(trainer, inputs, settings, progress, {"run_id": run_id, "seconds": time.monotonic() - started})
        _remove(folder)
    distributed.barrier()


def _ahead(inputs: Inputs, settings: Settings, start_step: int, device: torch.device) -> Ahead[PairBatch]:
    """Batches made ahead of use, in the memory that their device copies from."""
    batches = make_batches(inputs, settings, start_step, device)
    made: Iterable[PairBatch] = map(PairBatch.pin_memory, batches) if device.type == "cuda" else batches
    return Ahead(made, settings.train.prefetch_batches)


def _state(trainer: Trainer) -> dict[str, torch.Tensor]:
    tower = {f"tower.{name}": tensor for name, tensor in trainer.tower.state_dict().items()}
    return tower | {f"objective.{name}": tensor for name, tensor in trainer.objective.state_dict().items()}


def _resume(trainer: Trainer, folder: str) -> None:
    """Continue from the newest complete checkpoint of the same run, if there is one."""
    steps = checkpoint_steps(folder)
    if not steps:
        return
    tensors = load_checkpoint(folder, steps[-1], trainer.optimizer, {})
    for prefix, module in (("tower.", trainer.tower), ("objective.", trainer.objective)):
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        module.load_state_dict(own)
    trainer.step = steps[-1]
    if distributed.rank() == 0:
        print(f"  resuming after step {steps[-1]}", flush=True)


def _run_id(inputs: Inputs, settings: Settings) -> str:
    """Hash of everything that determines the result: inputs, sizes, tasks and number of ranks."""
    sections = settings.model_dump(mode="json", include={"tasks", "features", "model", "loss", "train"})
    for name in ("log_every", "checkpoint_every", "threads", "prefetch_batches"):
        del sections["train"][name]
    text = json.dumps([sections, inputs.entries, inputs.spec.to_json(), distributed.world_size()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _finish(trainer: Trainer, inputs: Inputs, settings: Settings, progress: Progress, facts: dict[str, Any]) -> None:
    """Save the model under its own id, then the record that points to it."""
    model_uri, identity = save_model(
        f"{settings.warehouse.uri}/models", trainer.tower, inputs.spec, {"trained_on": inputs.entries}
    )
    pairs = [r.pairs_per_second for r in progress.history]
    figures = {
        "model_id": identity,
        "model_uri": model_uri,
        "vocabulary_hash": read_record(settings.warehouse.uri, "build_item_features")["figures"]["vocabulary_hash"],
        "parameters": parameter_counts(trainer.tower),
        "steps": trainer.step,
        "pairs_per_second": round(float(np.median(pairs))) if pairs else 0,
        "waiting_for_data": round(float(np.mean([r.waiting for r in progress.history])), 3) if pairs else 0,
        "processes": distributed.world_size(),
        "precision": trainer.precision,
    }
    record = {
        "stage": STAGE,
        "run_id": facts["run_id"],
        "seconds": round(facts["seconds"], 2),
        "inputs": inputs.entries,
        "outputs": [],
        "rejected": {},
        "figures": figures,
        "settings": settings.model_dump(mode="json"),
    }
    write_record(settings.warehouse.uri, STAGE, record)
    print(f"  saved model {identity}", flush=True)


def _tensorboard(settings: Settings, run_id: str) -> str:
    """`<warehouse>/tensorboard/<run>`, where the warehouse is a local folder."""
    uri = settings.warehouse.uri
    return "" if "://" in uri else f"{uri}/tensorboard/{run_id}"


def _remove(folder: str) -> None:
    if checkpoint_steps(folder):
        system, path = file_system(folder)
        system.delete_dir(path)


def main() -> None:
    """Entry point of torchrun."""
    parser = argparse.ArgumentParser(
        prog="itemsage_model.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c")
    arguments = parser.parse_args()
    try:
        settings = load_settings(arguments.settings, arguments.set)
        device = distributed.start()
        try:
            train(settings, device)
        finally:
            distributed.stop()
    except SettingsError as error:
        _fail(str(error), 2)
    except (TableError, CheckpointError) as error:
        _fail(str(error), 3)
    except Exception:
        traceback.print_exc()
        _fail(traceback.format_exc(limit=0).strip().splitlines()[-1], 1)


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
