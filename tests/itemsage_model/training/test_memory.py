"""A trainer holds no more after many steps than after some: of a step nothing is kept but the weights."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.commands import ROOT

# In a process of its own: memory that other tests have freed would hide what a step keeps.
PROGRAM = """
import tempfile
from pathlib import Path
import psutil, torch
from itemsage_model.training import run
from itemsage_model.training.trainer import Trainer
from tests.itemsage_model.warehouses import make_warehouse

held, step = [], Trainer.train_step

def train_step(self, batch):
    held.append(psutil.Process().memory_info().rss / 1e6)
    return step(self, batch)

Trainer.train_step = train_step
with tempfile.TemporaryDirectory() as folder:
    rows = {"batch_size": 32, "negative_count": 32, "steps": 300, "log_every": 50}
    run.train(make_warehouse(Path(folder), {"click": [400, 90]}, train=rows), torch.device("cpu"))
print("MB", max(held[250:]) - max(held[80:130]))
"""


@pytest.mark.long
@pytest.mark.fault("A11", "recovered", "300 steps of training: the memory of the last 50 is that of 50 early ones")
def test_the_memory_of_training_does_not_grow_by_the_step() -> None:
    """What the last 50 of 300 steps need more than 50 early ones: within 1.3 MB; 10 MB where each batch is kept."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=200, check=True
    )
    assert float(done.stdout.splitlines()[-1].removeprefix("MB ")) < 5
