"""Train the item tower on the training tables that build_training_tables last completed.

    python -m itemsage_model.train --settings pipeline.toml [--set section.key=value]

Starts `train.processes` processes on this machine. Where a launcher has set RANK and WORLD_SIZE, such as torchrun over
several machines, it is one of that launcher's.

Reads: training_<task>, validation_<task>, item_features and item_counts, at the versions that the run records name.
Writes: `<warehouse>/models/<model_id>/` (safetensors + JSON), checkpoints while it runs, TensorBoard, its run record.
Safe to rerun: the same inputs and settings resume from the last checkpoint of an unfinished run.

Exit codes: 0 done; 1 unexpected failure, a retry resumes; 2 settings; 3 bad input, a retry will not help. torchrun
itself makes 1 of each of them.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext

from itemsage_model.training import distributed
from itemsage_model.training.inputs import Course
from itemsage_model.training.item_inputs import ITEM_TOWER
from itemsage_model.training.ranks import run_ranks
from itemsage_model.training.run import train
from schemas.command_line import settings_of, settings_parser
from schemas.orphans import end_with_parent
from schemas.repeats import stop_if_done
from schemas.results import ending_in_json, noted
from schemas.settings import Settings


def train_on_this_rank(settings: Settings, course: Course = ITEM_TOWER) -> None:
    """Join the other ranks, train to the end, and leave them whatever happens."""
    device = distributed.start(settings.deadlines.rank_seconds)
    try:
        with distributed.naming_silent_ranks(settings.deadlines.rank_seconds):
            train(settings, device, course)
    finally:
        distributed.stop()


def train_on_this_machine(settings: Settings, course: Course = ITEM_TOWER) -> int:
    """Train in `train.processes` processes; returns the exit code."""
    if settings.train.processes == 1 or "WORLD_SIZE" in os.environ:
        train_on_this_rank(settings, course)
        return 0
    return start_ranks(settings, course)


def start_ranks(settings: Settings, course: Course = ITEM_TOWER) -> int:
    """Start `train.processes` processes on this machine and wait for them; returns the exit code."""
    files = {"settings.json": settings.model_dump_json(exclude_unset=True), "stage": course.stage.name}
    return run_ranks(["-m", "itemsage_model.rank"], settings.train.processes, files)


def main(course: Course = ITEM_TOWER, description: str | None = __doc__) -> None:
    """Entry point of a stage that trains."""
    end_with_parent()
    stage = course.stage
    arguments = settings_parser(f"itemsage_model.{stage.name}", description).parse_args()
    with ending_in_json(stage.name):
        settings = settings_of(arguments)
        is_one_of_many = os.environ.get("RANK", "0") != "0"
        with nullcontext() if is_one_of_many else noted(settings, stage):
            stop_if_done(settings, stage)
            if code := train_on_this_machine(settings, course):
                sys.exit(code)


if __name__ == "__main__":
    main()
