"""Optimiser and schedule: AdamW, warm-up, then a cosine or the same rate on."""

from __future__ import annotations

import math

import torch
from torch import nn

from itemsage_model.encoders.tower import Tower
from schemas.settings import TrainSettings


def make_optimizer(tower: Tower, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW over a tower's weights and its lookup tables, each with its own learning rate.

    Biases, norms, the [CLS] vector, the temperature and the tables are not decayed.
    Tables whose rate is 0 get no gradient.
    Assumed: AdamW with betas .9, .999 (the paper names no optimiser).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in tower.named_parameters():
        is_table = name in tower.lookup_tables
        if is_table and not settings.table_learning_rate:
            parameter.requires_grad_(False)
            continue
        rate = settings.table_learning_rate if is_table else settings.learning_rate
        decay = settings.weight_decay if parameter.ndim > 1 and not is_table else 0.0
        key = (rate * tower.learning_rate_factors.get(name, 1.0), decay)
        groups.setdefault(key, []).append(parameter)
    # Fused: one pass over weights, gradients and moments, where the plain form takes one for each operation.
    optimizer = torch.optim.AdamW(
        [{"params": part, "lr": rate, "weight_decay": decay} for (rate, decay), part in groups.items()], fused=True
    )
    for group in optimizer.param_groups:
        group["start_rate"] = group["lr"]
    return optimizer


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, settings: TrainSettings) -> None:
    """Set the rates of a step, from 0: linear warm-up over `warmup_steps`, then a cosine to zero at `steps`.

    With the "constant" schedule the rates stay, so that training may end at any step: averaged weights settle what a
    falling rate would.
    """
    if step < settings.warmup_steps:
        factor = (step + 1) / settings.warmup_steps
    elif settings.schedule == "constant":
        factor = 1.0
    else:
        progress = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
        factor = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    for group in optimizer.param_groups:
        group["lr"] = group["start_rate"] * factor


def gradient_norm(tower: Tower) -> torch.Tensor:
    """Euclidean norm over all gradients; NaN or infinite as soon as one number is."""
    gradients = [parameter.grad for parameter in tower.parameters() if parameter.grad is not None]
    norm: torch.Tensor = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
    )
    return norm


def scale_gradients(tower: Tower, factor: float) -> None:
    """Multiply all gradients in place."""
    for parameter in tower.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
