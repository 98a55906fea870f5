"""When a pass has trained enough, and the weights that it had when it was best."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from itemsage_model.encoders.tower import Tower
from itemsage_model.training.validation import Recall


@dataclass
class EarlyStopping:
    """The best weights so far by their recall, and whether more steps are worth it.

    Attributes:
        patience: Measurements without a gain after which it is enough.
        hopeless: A worth; what has less of it at half time will not be chosen, and has had enough too. Before that, as
            much less of it as less of that time is over.
        half_time: Steps of half of the pass.
        history: What was measured.
        best: The best of it.
        weights: The tower's weights then.
    """

    patience: int
    hopeless: float = 0.0
    half_time: int = 0
    history: list[Recall] = field(default_factory=list)
    best: Recall | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)

    def add(self, found: Recall, tower: Tower) -> bool:
        """Take a measurement; returns whether it is enough."""
        self.history.append(found)
        if self.best is None or found.worth > self.best.worth:
            self.best = found
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in tower.state_dict().items()}
        is_hopeless = self.best.worth < self.hopeless * min(1.0, found.step / max(self.half_time, 1))
        return is_hopeless or sum(one.step > self.best.step for one in self.history) >= self.patience

    def to_tensors(self) -> dict[str, Tensor]:
        """As a checkpoint holds it."""
        rows = [[one.step, one.of_all, one.of_unseen, one.worth] for one in self.history]
        return {"history": torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)} | {
            f"best.{name}": tensor for name, tensor in self.weights.items()
        }

    def take(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `to_tensors`."""
        rows = tensors.get("history", torch.empty(0, 4)).tolist()
        self.history = [Recall(int(step), *figures) for step, *figures in rows]
        self.best = max(self.history, key=lambda one: (one.worth, -one.step), default=None)
        self.weights = {
            name.removeprefix("best."): tensor for name, tensor in tensors.items() if name.startswith("best.")
        }
