"""One pass of training: from fresh weights over one window of the training tables, with its checkpoints.

A run of training is one pass over the whole training period, or first a pass a candidate over what came before the
validation window, measured on that window, and then one over the whole period with the number of steps that was best.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, cast

import torch
from torch import Tensor

from itemsage_model.data.batch import PairBatch
from itemsage_model.data.parquet_files import reading_now
from itemsage_model.data.prefetch import Prefetch
from itemsage_model.encoders.item_tower import ItemTower, parameter_counts
from itemsage_model.encoders.model_files import CheckpointError
from itemsage_model.encoders.tower import Tower, TowerSpec
from itemsage_model.training import distributed
from itemsage_model.training.checkpoint import checkpoint_steps, load_checkpoint, save_checkpoint
from itemsage_model.training.early_stopping import EarlyStopping
from itemsage_model.training.inputs import Course, Inputs, make_batches, make_objective
from itemsage_model.training.item_memory import ItemMemory
from itemsage_model.training.progress import Progress
from itemsage_model.training.start import Strength, start_spectral
from itemsage_model.training.trainer import StepReport, Trainer, TrainingError
from itemsage_model.training.validation import Recall, Validation
from schemas.settings import Settings
from schemas.storage import write_bytes
from schemas.tables import EMBEDDING_DIM

_HOPE = 0.75
"""Share of what the best so far is worth that a candidate must have at half time to go on; half of it at a quarter."""


@dataclass(frozen=True)
class Pass:
    """What one pass trains, and on what.

    Attributes:
        name: Its name in what is printed; empty for the only one.
        settings: Model, loss and training.
        course: What is trained.
        inputs: The pinned tables, with the weights of the pass's window.
        checkpoints: Folder of its checkpoints.
        tensorboard: Local folder of its curves; empty = none.
        run_id: Identity of the run; a checkpoint of another run is not resumed.
        pull: Pull on items without training pairs that an earlier pass has found; see `Validation.calibrate`.
        strength: Strength of its singular vectors at the start that an earlier pass has found.
        is_validated: Whether it is measured as it goes on, and ends when that is enough.
        to_beat: What the best candidate before is worth, with which it competes.
        validation: Measures it, and knows the mean query; rank 0 has it, where anything is validated.
    """

    name: str
    settings: Settings
    course: Course
    inputs: Inputs
    checkpoints: str
    tensorboard: str
    run_id: str
    pull: float = 0.0
    strength: Strength | None = None
    is_validated: bool = False
    to_beat: float = 0.0
    validation: Validation | None = None


@dataclass(frozen=True)
class Outcome:
    """A pass that has ended.

    Attributes:
        tower: With the weights that count: the best on the validation window, or the last.
        spec: What it is.
        steps: Steps after which it had them.
        best: What was measured then; None without validation.
        history: All that was measured.
        pull: Pull on items without training pairs.
        strength: Strength of the singular vectors that it started from; None = it started from none.
        reports: What was reported on the way.
        skipped_steps: Steps without an update.
        precision: What the tower was computed in.
    """

    tower: Tower
    spec: TowerSpec
    steps: int
    best: Recall | None
    history: list[Recall]
    pull: float = 0.0
    strength: Strength | None = None
    reports: list[StepReport] = field(default_factory=list)
    skipped_steps: int = 0
    precision: str = "float32"

    @property
    def recall(self) -> float:
        """What the best on the validation window is worth; 0 without validation."""
        return self.best.worth if self.best else 0.0


def run_pass(one: Pass, device: torch.device) -> Outcome:
    """Train from fresh weights, or from the newest intact checkpoint of the same pass, to the end of the pass.

    Raises:
        TrainingError: too many steps in a row cannot be taken; the keys of each rank's last batch are on disk then.
    """
    settings, inputs, is_first = one.settings, one.inputs, distributed.rank() == 0
    tower = one.course.begin(inputs, settings).to(device)
    memory = ItemMemory(settings.loss, settings.train) if settings.loss.form == "bucketed" else None
    trainer = Trainer(tower, make_objective(inputs, settings, device), settings.train, len(settings.tasks), memory)
    stopping = EarlyStopping(settings.train.patience, _HOPE * one.to_beat, settings.train.steps // 2)
    strength = _resume(trainer, stopping, one.checkpoints)
    if settings.train.start == "spectral" and trainer.step == 0:
        strength = start_spectral(
            cast(ItemTower, tower), inputs, settings, one.strength, one.validation if one.is_validated else None
        )
        trainer.start_average()
    names = [task.name for task in settings.task_list]
    if is_first:
        print(f"  parameters: {parameter_counts(tower)['total']:,}; run {one.run_id}", flush=True)
    progress = Progress(settings.train.steps, names, one.tensorboard, trainer.step) if is_first else None
    batches = _prefetched(one, trainer.step, device)

    def save() -> None:
        if is_first:
            tensors = _state(trainer, stopping, strength)
            save_checkpoint(one.checkpoints, trainer.step, tensors, trainer.optimizer, {"run_id": one.run_id})

    is_enough = _is_enough(one, trainer, stopping, device)
    if is_enough and trainer.step == 0:
        is_enough()  # what the frozen vectors reach, where training starts from them
    try:
        trainer.fit(batches, progress or (lambda _: None), save, is_enough)
    except TrainingError as error:
        place = _keep_keys(error, one.checkpoints, names)
        message = f"{error} The keys of this process's last batch, and the loss of each pair, stand in {place}."
        raise TrainingError(message, error.step, error.batch, error.losses) from error
    finally:
        batches.close()
        if progress:
            progress.close()
    trained, steps = trainer.trained, trainer.step
    if stopping.best is not None:
        trained.load_state_dict(stopping.weights)
        steps = stopping.best.step
    pull = _pulled(one, trained, steps, device)
    reports = progress.history if progress else []
    return Outcome(
        trained, inputs.spec, steps, stopping.best, stopping.history, pull, strength, reports, trainer.skipped_steps,
        trainer.precision,
    )  # fmt: skip


def _keep_keys(error: TrainingError, folder: str, tasks: list[str]) -> str:
    """Write which pairs a batch held that cannot be trained on, beside the checkpoints; returns where."""
    batch, place = error.batch, f"{folder}/bad_batch_of_rank_{distributed.rank()}.json"
    columns = {
        "task": [tasks[number] for number in batch.task.tolist()],
        "query_key": batch.query_key.tolist(),
        "item_key": batch.item_key[batch.positive].tolist(),
        "loss": [loss if isfinite(loss) else str(loss) for loss in error.losses.tolist()],
    }
    pairs = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    write_bytes(place, (json.dumps({"step": error.step, "pairs": pairs}, indent=2) + "\n").encode())
    return place


def _pulled(one: Pass, trained: Tower, step: int, device: torch.device) -> float:
    """Pull items without training pairs as far as the settings ask, on all ranks; returns how far."""
    if not pulls_unseen(one.settings):
        return 0.0
    tower = cast(ItemTower, trained)
    pull, direction = one.pull, torch.zeros(EMBEDDING_DIM, device=device)
    if one.validation is not None:
        if one.is_validated:
            pull = one.validation.calibrate(tower, step, device).pull
            print(f"  {one.name} has a pull of {pull} on items without training pairs", flush=True)
        direction += pull * one.validation.mean_query(tower, device).to(device)
    tower.pull_unseen(distributed.sum_over_ranks(direction))
    of_first = pull if distributed.rank() == 0 else 0.0
    return float(distributed.sum_over_ranks(torch.tensor(of_first, dtype=torch.float64, device=device)))


def pulls_unseen(settings: Settings) -> bool:
    """Whether items without training pairs are moved nearer to queries, or farther, as their recall asks."""
    return settings.train.unseen_as_frozen and settings.model.residual and settings.model.knows_items


def _is_enough(one: Pass, trainer: Trainer, stopping: EarlyStopping, device: torch.device) -> Callable[[], bool] | None:
    """Measures on rank 0 and tells the others; all keep the best weights, as all have them."""
    if not one.is_validated:
        return None

    is_pulled = pulls_unseen(one.settings)

    def measure() -> bool:
        figures = torch.zeros(3, dtype=torch.float64, device=device)
        if one.validation is not None:
            if is_pulled:
                tower = cast(ItemTower, trainer.trained)
                found = one.validation.calibrate(tower, trainer.step, device).recall
            else:
                found = one.validation.recall(trainer.trained, trainer.step, device)
            figures += torch.tensor([found.of_all, found.of_unseen, found.worth], dtype=torch.float64, device=device)
            print(f"  validation of {one.name}, {found}", flush=True)
        found = Recall(trainer.step, *distributed.sum_over_ranks(figures).tolist())
        return stopping.add(found, trainer.trained)

    return measure


def _prefetched(one: Pass, start_step: int, device: torch.device) -> Prefetch[PairBatch]:
    """Batches made ahead of use, in the memory that their device copies from."""
    settings, make = one.settings, one.course.batches or make_batches
    batches = make(one.inputs, settings, start_step, device)
    made: Iterable[PairBatch] = map(PairBatch.pin_memory, batches) if device.type == "cuda" else batches
    return Prefetch(made, settings.train.prefetch_batches, settings.deadlines.read_seconds, reading_now)


def _modules(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint holds the weights and buffers of, by the prefix of their names there."""
    modules = {"tower.": trainer.tower, "objective.": trainer.objective}
    return modules | ({"average.": trainer.average} if trainer.average else {})


def _state(trainer: Trainer, stopping: EarlyStopping, strength: Strength | None) -> dict[str, Tensor]:
    state = {
        prefix + name: tensor
        for prefix, module in _modules(trainer).items()
        for name, tensor in module.state_dict().items()
    }
    stopped = {f"stopping.{name}": tensor for name, tensor in stopping.to_tensors().items()} if stopping.history else {}
    started = {"strength": strength.to_tensor()} if strength else {}
    return state | stopped | started | {"skipped_steps": torch.tensor(trainer.skipped_steps)}


def _resume(trainer: Trainer, stopping: EarlyStopping, folder: str) -> Strength | None:
    """Continue from the newest intact checkpoint of the same pass, the same on all ranks; start anew where none is.

    Returns what the pass started from; None where that was nothing, or it starts now.

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
            _take(trainer, stopping, tensors, int(step))
            if is_first:
                print(f"  resuming after step {trainer.step}", flush=True)
            return Strength.from_tensor(tensors["strength"]) if "strength" in tensors else None
        if is_first:
            said = damage or "another process cannot read it"
            print(f"  warning: passing over the checkpoint after step {int(step)}: {said}", flush=True)
    if found and is_first:
        print(f"  warning: no checkpoint in {folder} is intact: training starts anew, from step 0", flush=True)
    return None


def _take(trainer: Trainer, stopping: EarlyStopping, tensors: dict[str, Tensor], step: int) -> None:
    """Go on from the tensors of a checkpoint; its optimiser's state is loaded."""
    for prefix, module in _modules(trainer).items():
        module.load_state_dict(_without(prefix, tensors))
    stopping.take(_without("stopping.", tensors))
    trainer.step = step
    trainer.skipped_steps = int(tensors.get("skipped_steps", 0))


def _without(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
