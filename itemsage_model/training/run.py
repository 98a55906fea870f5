"""One training run: pin the inputs, resume, fit, save the model, and the record that points to it."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from itemsage_model.data.batch import PairBatch
from itemsage_model.data.parquet_files import reading_now
from itemsage_model.data.prefetch import Prefetch
from itemsage_model.encoders.item_tower import parameter_counts
from itemsage_model.encoders.model_files import CheckpointError, save_model
from itemsage_model.training import distributed
from itemsage_model.training.checkpoint import checkpoint_steps, load_checkpoint, remove_checkpoints, save_checkpoint
from itemsage_model.training.inputs import Inputs, make_batches, make_objective, pin_inputs
from itemsage_model.training.progress import Progress
from itemsage_model.training.trainer import Trainer
from schemas.lease import hold, require_held
from schemas.metrics import TrainMetrics
from schemas.records import RunRecord, write_record
from schemas.settings import Settings
from schemas.stages import TRAIN as STAGE
from schemas.warehouse import Warehouse


def train(settings: Settings, device: torch.device) -> None:
    """Train, on this rank, to the end; rank 0 holds the warehouse meanwhile, and saves the model and the record."""
    with ExitStack() as held:
        if distributed.rank() == 0:
            held.enter_context(hold(settings.layout, STAGE.name, str(settings.dates.as_of)))
        _train(settings, device)


def _train(settings: Settings, device: torch.device) -> None:
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
    folder = settings.layout.checkpoints(run_id)
    _resume(trainer, folder)
    is_first = distributed.rank() == 0
    names = [task.name for task in settings.task_list]
    if is_first:
        print(f"  parameters: {parameter_counts(tower)['total']:,}; run {run_id}", flush=True)
    progress = (
        Progress(settings.train.steps, names, settings.layout.tensorboard(run_id), trainer.step) if is_first else None
    )
    batches = _prefetched(inputs, settings, trainer.step, device)

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
        require_held()
        metrics = _save_trained(trainer, inputs, settings, progress)
        seconds = round(time.monotonic() - started, 2)
        values = settings.model_dump(mode="json")
        record = RunRecord(STAGE.name, metrics, run_id, seconds, inputs.versions, settings=values,
                           made_with=inputs.made_with)  # fmt: skip
        write_record(settings.layout, record)
        print(f"  saved model {metrics.model_id}", flush=True)
        remove_checkpoints(folder)
    distributed.barrier()


def _prefetched(inputs: Inputs, settings: Settings, start_step: int, device: torch.device) -> Prefetch[PairBatch]:
    """Batches made ahead of use, in the memory that their device copies from."""
    batches = make_batches(inputs, settings, start_step, device)
    made: Iterable[PairBatch] = map(PairBatch.pin_memory, batches) if device.type == "cuda" else batches
    return Prefetch(made, settings.train.prefetch_batches, settings.deadlines.read_seconds, reading_now)


def _state(trainer: Trainer) -> dict[str, torch.Tensor]:
    tower = {f"tower.{name}": tensor for name, tensor in trainer.tower.state_dict().items()}
    objective = {f"objective.{name}": tensor for name, tensor in trainer.objective.state_dict().items()}
    return tower | objective | {"skipped_steps": torch.tensor(trainer.skipped_steps)}


def _resume(trainer: Trainer, folder: str) -> None:
    """Continue from the newest intact checkpoint of the same run, the same on all ranks; start anew where none is.

    A damaged one is passed over, loudly: the run comes to the same weights from an older one, or from the start.
    """
    steps, is_first = checkpoint_steps(folder), distributed.rank() == 0
    found = bool(steps)
    while (step := distributed.min_over_ranks(torch.tensor(steps[-1] if steps else -1, device=trainer.device))) >= 0:
        steps = [older for older in steps if older < step]
        try:
            tensors, damage = load_checkpoint(folder, int(step), trainer.optimizer, {}), ""
        except (CheckpointError, LookupError, TypeError, ValueError) as error:
            tensors, damage = {}, str(error)
        if distributed.min_over_ranks(torch.tensor(int(not damage), device=trainer.device)):
            _take(trainer, tensors, int(step))
            if is_first:
                print(f"  resuming after step {trainer.step}", flush=True)
            return
        if is_first:
            said = damage or "another process cannot read it"
            print(f"  warning: passing over the checkpoint after step {int(step)}: {said}", flush=True)
    if found and is_first:
        print(f"  warning: no checkpoint in {folder} is intact: training starts anew, from step 0", flush=True)


def _take(trainer: Trainer, tensors: dict[str, torch.Tensor], step: int) -> None:
    """Go on from the tensors of a checkpoint; its optimiser's state is loaded."""
    for prefix, module in (("tower.", trainer.tower), ("objective.", trainer.objective)):
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        module.load_state_dict(own)
    trainer.step = step
    trainer.skipped_steps = int(tensors.get("skipped_steps", 0))


def _run_id(inputs: Inputs, settings: Settings) -> str:
    """Hash of everything that determines the result: inputs, sizes, tasks and number of ranks."""
    sections = settings.model_dump(mode="json", include={"tasks", "features", "model", "loss", "train"})
    for name in ("log_every", "checkpoint_every", "threads", "prefetch_batches"):
        del sections["train"][name]
    versions = _versions(inputs, settings.layout)
    text = json.dumps([sections, versions, inputs.spec.to_json(), distributed.world_size()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _versions(inputs: Inputs, layout: Warehouse) -> list[dict[str, Any]]:
    """The tables read, with paths that a moved warehouse keeps."""
    return [asdict(version) | {"uri": layout.relative(version.uri)} for version in inputs.versions]


def _save_trained(trainer: Trainer, inputs: Inputs, settings: Settings, progress: Progress) -> TrainMetrics:
    """Save the model under its own id; returns what the run record says of it."""
    facts = {"trained_on": _versions(inputs, settings.layout), "made_with": inputs.made_with}
    model_uri, identity = save_model(settings.layout.models, trainer.tower, inputs.spec, facts)
    rates = [report.pairs_per_second for report in progress.history]
    waits = [report.waiting for report in progress.history]
    return TrainMetrics(
        identity,
        model_uri,
        inputs.vocabulary_hash,
        parameter_counts(trainer.tower),
        trainer.step,
        round(float(np.median(rates))) if rates else 0,
        round(float(np.mean(waits)), 3) if waits else 0,
        distributed.world_size(),
        trainer.precision,
        trainer.skipped_steps,
    )
