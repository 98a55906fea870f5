"""Optimiser and schedule: AdamW for the encoder, row-wise Adam for sparse hash tables, warm-up and cosine for both."""

from __future__ import annotations

import math

import torch
from torch import nn

from itemsage_model.item_tower import ItemTower
from schemas.settings import TrainSettings

TABLES = ("hash_embedding.table.weight", "hash_embedding.importance.weight")


def make_optimizers(tower: ItemTower, settings: TrainSettings, *, is_sparse: bool) -> list[torch.optim.Optimizer]:
    """One optimiser for dense parameters and, with sparse gradients, one that touches only the batch's table rows.

    Biases, norms, the [CLS] vector, the temperature and the tables are not decayed.
    Assumed: AdamW with betas .9, .999 (the paper names no optimiser).
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    for name, parameter in tower.named_parameters():
        kind = tables if name in TABLES else decayed if parameter.ndim > 1 else plain
        kind.append(parameter)
    groups = [
        {"params": decayed, "lr": settings.learning_rate, "weight_decay": settings.weight_decay},
        {"params": plain, "lr": settings.learning_rate, "weight_decay": 0.0},
    ]
    if tables and not is_sparse:
        groups.append({"params": tables, "lr": settings.table_learning_rate, "weight_decay": 0.0})
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups)]
    if tables and is_sparse:
        optimizers.append(torch.optim.SparseAdam(tables, lr=settings.table_learning_rate))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["start_rate"] = group["lr"]
    return optimizers


def set_learning_rates(optimizers: list[torch.optim.Optimizer], step: int, settings: TrainSettings) -> None:
    """Set the rates of a step, from 0: linear warm-up over `warmup_steps`, then a cosine to zero at `steps`."""
    if step < settings.warmup_steps:
        factor = (step + 1) / settings.warmup_steps
    else:
        progress = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
        factor = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["start_rate"] * factor


def gradient_norm(module: nn.Module) -> torch.Tensor:
    """Euclidean norm over all gradients; NaN or infinite as soon as one number is."""
    norms = []
    for parameter in module.parameters():
        if parameter.grad is not None:
            gradient = parameter.grad
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            norms.append(torch.linalg.vector_norm(values))
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def scale_gradients(module: nn.Module, factor: float) -> None:
    """Multiply all gradients, dense and sparse, in place."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
