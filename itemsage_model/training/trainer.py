"""The training loop: fetch, encode, gather, count, loss, backward, step, log. Takes any iterable of batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from itemsage_model.data.batch import PairBatch
from itemsage_model.encoders.precision import Precision, choose_precision, tensor_float32
from itemsage_model.encoders.tower import Tower
from itemsage_model.training import distributed
from itemsage_model.training.item_memory import ItemMemory
from itemsage_model.training.objective import Objective
from itemsage_model.training.optim import gradient_norm, make_optimizer, scale_gradients, set_learning_rates
from schemas.errors import EXIT_SETTINGS
from schemas.settings import TrainSettings

MAX_BAD_STEPS = 10


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is not a number, step after step; a retry would meet the same steps.

    Args:
        message: What happened, and what to do.
        step: The step at which it ended.
        batch: This rank's last batch.
        losses: Of its pairs.
    """

    exit_code = EXIT_SETTINGS

    def __init__(self, message: str, step: int, batch: PairBatch, losses: Tensor) -> None:
        super().__init__(message)
        self.step, self.batch, self.losses = step, batch, losses.detach()


@dataclass
class StepReport:
    """What one log line says: averages since the last one, of this rank.

    Attributes:
        step: Steps taken.
        losses: Mean loss of each task.
        temperature: Scale of the cosine.
        gradient_norm: Of the last step.
        pairs_per_second: Over all ranks.
        waiting: Share of the time spent waiting for data.
    """

    step: int
    losses: list[float]
    temperature: float
    gradient_norm: float
    pairs_per_second: float
    waiting: float


@dataclass
class _Window:
    """Sums since the last report."""

    tasks: int
    losses: Tensor = field(init=False)
    counts: Tensor = field(init=False)
    started: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    pairs: int = 0

    def __post_init__(self) -> None:
        self.losses, self.counts = torch.zeros(self.tasks), torch.zeros(self.tasks)

    def add(self, losses: Tensor, tasks: Tensor) -> None:
        self.losses.index_add_(0, tasks.cpu(), losses.detach().float().cpu())
        self.counts.index_add_(0, tasks.cpu(), torch.ones(len(losses)))
        self.pairs += len(losses) * distributed.world_size()

    def report(self, step: int, temperature: float, norm: float) -> StepReport:
        seconds = max(time.monotonic() - self.started, 1e-9)
        means = (self.losses / self.counts.clamp_min(1)).tolist()
        return StepReport(step, means, temperature, norm, self.pairs / seconds, self.waited / seconds)


class Trainer:
    """A tower, its objective, its optimiser, the numbers of steps taken and skipped: all that a checkpoint must hold.

    Args:
        tower: The tower, on its device.
        objective: Gathers, counts and computes the loss.
        settings: Batches, optimiser, schedule.
        tasks: Number of tasks, for the report.
        memory: Chooses the items of a bucketed softmax; None with other forms of the loss.
    """

    def __init__(
        self, tower: Tower, objective: Objective, settings: TrainSettings, tasks: int, memory: ItemMemory | None = None
    ) -> None:
        self.memory = memory
        self.tower, self.objective, self.settings, self.tasks = tower, objective, settings, tasks
        self.device = tower.temperature().device
        self.optimizer = make_optimizer(tower, settings)
        self.step = self.skipped_steps = 0
        self.precision = self._same_precision()
        self.average = _average(tower, settings.average_decay)
        self._bad_steps = 0
        self._model: nn.Module = _over_ranks(tower)

    @property
    def trained(self) -> Tower:
        """What is validated and saved: the tower with its weights averaged over the steps, where they are."""
        return cast(Tower, self.average.module) if self.average else self.tower

    def start_average(self) -> None:
        """Begin the average of the weights with what the tower has now."""
        if self.average:
            self.average.module.load_state_dict(cast(nn.Module, self.tower).state_dict())

    def fit(
        self,
        batches: Iterable[PairBatch],
        report: Callable[[StepReport], None],
        save: Callable[[], None],
        is_enough: Callable[[], bool] | None = None,
    ) -> None:
        """Train until `settings.steps` steps are taken, or it is enough.

        Args:
            batches: This rank's batches, endless.
            report: Called every `log_every` steps.
            save: Called every `checkpoint_every` steps, except after the last.
            is_enough: Called every `validate_every` steps and after the last; whether to stop, equal on all ranks.

        Raises:
            TrainingError: the gradient is not finite in too many steps in a row.
        """
        source = iter(batches)
        window = _Window(self.tasks)
        while self.step < self.settings.steps:
            waiting = time.monotonic()
            batch = next(source).to(self.device)
            window.waited += time.monotonic() - waiting
            losses, norm = self.train_step(batch)
            window.add(losses, batch.task)
            if self.step % self.settings.log_every == 0 or self.step == self.settings.steps:
                report(window.report(self.step, float(self.tower.temperature().detach()), norm))
                window = _Window(self.tasks)
            if is_enough and self._is_due(self.settings.validate_every) and is_enough():
                return
            if self.step % self.settings.checkpoint_every == 0 and self.step < self.settings.steps:
                save()

    def _is_due(self, every: int) -> bool:
        return bool(every) and (self.step % every == 0 or self.step == self.settings.steps)

    def train_step(self, batch: PairBatch) -> tuple[Tensor, float]:
        """One step on one batch; returns the loss of each pair and the norm of the gradient."""
        is_half = self.precision == "bfloat16"
        with tensor_float32(is_half):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=is_half):
                if self.memory is not None:
                    batch = self.memory.narrowed(batch, self.tower, self.step)
                embedded = self._model(self.tower.inputs(batch))
                if self.memory is not None:
                    self.memory.keep(embedded)
            queries, items = self.tower.sides(embedded.float(), batch)
            losses, objective = self.objective(queries, items, batch, self.tower.temperature())
            objective.backward()
        norm = float(gradient_norm(self.tower))
        self._update(norm, batch, losses)
        self.step += 1
        return losses, norm

    def _update(self, norm: float, batch: PairBatch, losses: Tensor) -> None:
        """Apply the gradient, the same on all ranks; skip it where it is not finite, which all ranks see alike."""
        if not torch.isfinite(torch.tensor(norm)):
            self._bad_steps += 1
            self.skipped_steps += 1
            if self._bad_steps >= MAX_BAD_STEPS:
                raise TrainingError(
                    f"the gradient was not finite in {MAX_BAD_STEPS} steps in a row, up to step {self.step}: lower "
                    "learning_rate in the tower's section of the settings, [train] for the item tower.",
                    self.step,
                    batch,
                    losses,
                )
        else:
            self._bad_steps = 0
            if self.settings.clip_norm and norm > self.settings.clip_norm:
                scale_gradients(self.tower, self.settings.clip_norm / norm)
            set_learning_rates(self.optimizer, self.step, self.settings)
            self.optimizer.step()
            if self.average:
                self.average.update_parameters(cast(nn.Module, self.tower))
        self.optimizer.zero_grad(set_to_none=True)

    def _same_precision(self) -> Precision:
        """What the settings mean here; float32 on all ranks if it is so on one."""
        is_half = choose_precision(self.settings.precision, self.device) == "bfloat16"
        is_half_everywhere = distributed.min_over_ranks(torch.tensor(int(is_half), device=self.device))
        return "bfloat16" if is_half_everywhere else "float32"


def _average(tower: Tower, decay: float) -> AveragedModel | None:
    """The tower with an exponential moving average of its weights (Polyak and Juditsky 1992); None where decay is 0."""
    if not decay:
        return None
    average = AveragedModel(cast(nn.Module, tower), multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    return average.requires_grad_(False)


def _over_ranks(tower: Tower) -> nn.Module:
    """The tower, its gradients averaged over the ranks where there are several."""
    module = cast(nn.Module, tower)
    return DistributedDataParallel(module) if distributed.world_size() > 1 else module
