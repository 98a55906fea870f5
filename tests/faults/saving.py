"""Saving a checkpoint, and training, to be killed and starved of disk: functions of plain values."""

from __future__ import annotations

import builtins
import os
import signal
from typing import Any

import torch

from itemsage_model.train import train_on_this_rank
from itemsage_model.training.checkpoint import save_checkpoint
from schemas.command_line import exit_code_of_errors
from schemas.settings import Settings
from tests.faults.publishing import limit_files

torch.set_num_threads(1)


def state_after(step: int) -> tuple[dict[str, torch.Tensor], torch.optim.Optimizer]:
    """Weights, and an optimiser, that tell of their step."""
    weight = torch.full((400_000,), float(step), requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=0.0, foreach=False)
    weight.grad = torch.full((400_000,), float(step))
    optimizer.step()
    return {"weight": torch.full((400_000,), float(step)), "step": torch.tensor(step)}, optimizer


state_after(0)  # what torch imports when an optimiser is first used, each child would import anew


def save(folder: str, step: int) -> None:
    """Save the checkpoint of a step."""
    tensors, optimizer = state_after(step)
    facts: dict[str, Any] = {"run_id": "r"}
    save_checkpoint(folder, step, tensors, optimizer, facts)


def save_on_a_full_disk(folder: str, step: int, most_bytes: int) -> None:
    """No file may grow beyond some bytes."""
    limit_files(most_bytes)
    save(folder, step)


def train_until_line(settings_json: str, number: int) -> None:
    """Train, and be killed before the line of this number is printed."""
    printed, say = 0, builtins.print

    def ending(*what: object, **how: Any) -> None:
        nonlocal printed
        printed += 1
        if printed > number:
            os.kill(os.getpid(), signal.SIGKILL)
        say(*what, **how)

    builtins.print = ending  # type: ignore[assignment]
    train(settings_json)


def train(settings_json: str) -> None:
    """Train to the end, as `python -m itemsage_model.train` does in one process."""
    with exit_code_of_errors():
        train_on_this_rank(Settings.model_validate_json(settings_json))
