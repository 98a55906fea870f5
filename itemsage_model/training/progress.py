"""What a person sees while training runs: a progress bar in a terminal, plain lines elsewhere; and TensorBoard."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from tqdm import tqdm

from itemsage_model.training.trainer import StepReport


class Progress:
    """Reports of rank 0.

    Args:
        steps: Steps in all.
        task_names: Names of the tasks, in the order of the reports' losses.
        tensorboard_folder: Local folder for TensorBoard; empty = none.
        start_step: Steps already taken.
    """

    def __init__(self, steps: int, task_names: list[str], tensorboard_folder: str, start_step: int) -> None:
        self.steps, self.task_names = steps, task_names
        self.history: list[StepReport] = []
        self._bar: Any = None
        if sys.stdout.isatty():
            self._bar = tqdm(total=steps, initial=start_step, unit="step", file=sys.stdout)
        self._writer: Any = None
        if tensorboard_folder:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tensorboard's own imports
                from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (slow, and rank 0 only)

                self._writer = SummaryWriter(tensorboard_folder, purge_step=start_step)

    def __call__(self, report: StepReport) -> None:
        """Show one report."""
        self.history.append(report)
        losses = " ".join(f"{name} {loss:.3f}" for name, loss in zip(self.task_names, report.losses, strict=True))
        line = (
            f"step {report.step}/{self.steps}  {report.pairs_per_second:,.0f} pairs/s  "
            f"waiting for data {report.waiting:.0%}  temperature {report.temperature:.1f}  loss {losses}"
        )
        if self._bar is not None:
            self._bar.update(report.step - self._bar.n)
            self._bar.set_postfix_str(f"{report.pairs_per_second:,.0f} pairs/s, wait {report.waiting:.0%}")
        else:
            print(f"  {line}", flush=True)
        if self._writer is not None:
            for name, loss in zip(self.task_names, report.losses, strict=True):
                self._writer.add_scalar(f"loss/{name}", loss, report.step)
            for name in ("temperature", "gradient_norm", "pairs_per_second", "waiting"):
                self._writer.add_scalar(name, getattr(report, name), report.step)

    def close(self) -> None:
        """Flush and close."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()
