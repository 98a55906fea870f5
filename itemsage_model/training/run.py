"""One training run: choose what to train, fit it on all but the validation window, train it on all, save the model."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from itemsage_model.encoders.item_tower import parameter_counts
from itemsage_model.encoders.model_files import save_model
from itemsage_model.training import distributed
from itemsage_model.training.checkpoint import remove_checkpoints
from itemsage_model.training.inputs import Course, Inputs, validation_of
from itemsage_model.training.item_inputs import ITEM_TOWER
from itemsage_model.training.passes import Outcome, Pass, pulls_unseen, run_pass
from itemsage_model.training.rivals import measure_rivals
from itemsage_model.training.validation import Validation
from schemas.lease import hold, require_held
from schemas.metrics import CandidateMetrics, TrainMetrics
from schemas.presets import Candidate
from schemas.records import RunRecord, write_record
from schemas.settings import Settings
from schemas.warehouse import Warehouse


def train(settings: Settings, device: torch.device, course: Course = ITEM_TOWER) -> None:
    """Train, on this rank, to the end; rank 0 holds the warehouse meanwhile, and saves the model and the record."""
    with ExitStack() as held:
        if distributed.rank() == 0:
            held.enter_context(hold(settings.layout, course.stage.name, str(settings.dates.as_of)))
        _train(settings, device, course)


def _train(shops: Settings, device: torch.device, course: Course) -> None:
    started, settings = time.monotonic(), course.settings_of(shops)
    # torch says once that its sparse matrices, which sum the hash bags on a GPU, are in beta state and unchecked.
    warnings.filterwarnings("ignore", "Sparse ", UserWarning)
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(settings.train.threads or max(1, (os.cpu_count() or 1) // local_ranks))
    inputs = course.pin(settings)
    run_id = _run_id(inputs, settings)
    distributed.same_on_all_ranks("inputs and settings", run_id)
    tried = course.candidates(inputs, settings)
    is_first = distributed.rank() == 0
    asks = any(one.settings.train.validate_every for one in tried)
    validation = (course.validation or validation_of)(inputs, settings) if asks else None
    if asks and validation is None:
        _say("warning: no validation pair, so training ends at its last step: raise dates.validation_days")
    if validation is not None and any(pulls_unseen(one.settings) for one in tried):
        distributed.on_first(partial(measure_rivals, validation, inputs.tasks))
        _say(f"without a model, {validation.rivals}")
    fitted = _fit(course, tried, inputs, validation, run_id, device) if validation else {}
    chosen = max(fitted, key=lambda name: fitted[name].recall) if fitted else tried[0].name
    candidate = next(one for one in tried if one.name == chosen)
    measures = validation if is_first else None
    outcome = _final(course, candidate, fitted.get(chosen), inputs, measures, run_id, device)
    if is_first:
        require_held()
        metrics = _save_trained(inputs, candidate, outcome, fitted, tried)
        print(f"  chosen: {metrics.choice}", flush=True)
        seconds = round(time.monotonic() - started, 2)
        record = RunRecord(course.stage.name, metrics, run_id, seconds, inputs.versions,
                           settings=shops.model_dump(mode="json"), made_with=inputs.made_with,
                           made_after=inputs.made_after)  # fmt: skip
        write_record(settings.layout, record)
        print(f"  saved model {metrics.model_id}", flush=True)
        for folder in (run_id, *(f"{run_id}-{one.name}" for one in tried)):
            remove_checkpoints(settings.layout.checkpoints(folder))
    distributed.barrier()


def _fit(
    course: Course,
    tried: list[Candidate],
    inputs: Inputs,
    validation: Validation,
    run_id: str,
    device: torch.device,
) -> dict[str, Outcome]:
    """Each candidate that asks for it, trained on what came before the validation window."""
    outcomes: dict[str, Outcome] = {}
    # What starts from most of what it will reach goes first: what is far behind that is given up early.
    for one in sorted(tried, key=lambda one: one.settings.train.start != "spectral"):
        if one.settings.train.validate_every:
            _say(f"fitting {one.name}: {one.reason}")
            layout, folder = one.settings.layout, f"{run_id}-{one.name}"
            outcomes[one.name] = run_pass(
                Pass(
                    one.name,
                    one.settings,
                    course,
                    course.for_pass(inputs, one.settings, "fit_weight"),
                    layout.checkpoints(folder),
                    layout.tensorboard(folder),
                    run_id,
                    is_validated=True,
                    to_beat=max((earlier.recall for earlier in outcomes.values()), default=0.0),
                    validation=validation if distributed.rank() == 0 else None,
                ),
                device,
            )
    return outcomes


def _final(
    course: Course,
    candidate: Candidate,
    fitted: Outcome | None,
    inputs: Inputs,
    validation: Validation | None,
    run_id: str,
    device: torch.device,
) -> Outcome:
    """The chosen candidate over the whole training period, for as many steps as were best; or as it was fitted."""
    settings = candidate.settings
    if fitted is not None and not (settings.train.final_pass and (fitted.steps or fitted.strength)):
        return fitted
    if fitted is not None:
        _say(f"training {candidate.name} on the whole period, {fitted.steps} steps")
        train_settings = settings.train.model_copy(update={"steps": fitted.steps})
        settings = settings.model_copy(update={"train": train_settings})
    layout, whole = settings.layout, course.for_pass(inputs, settings, "pair_weight")
    folders = layout.checkpoints(run_id), layout.tensorboard(run_id)
    pull, strength = (fitted.pull, fitted.strength) if fitted else (0.0, None)
    return run_pass(Pass("", settings, course, whole, *folders, run_id, pull, strength, validation=validation), device)


def _say(line: str) -> None:
    if distributed.rank() == 0:
        print(f"  {line}", flush=True)


_LAYOUT = 2
"""Of what a checkpoint holds; a higher number where code changes it, so that older checkpoints are not resumed."""


def _run_id(inputs: Inputs, settings: Settings) -> str:
    """Hash of everything that determines the result: inputs, sizes, tasks, number of ranks and the code's layout."""
    named = {"preset", "tasks", "negatives", "features", "model", "loss", "train"}
    sections = settings.model_dump(mode="json", include=named)
    for name in ("log_every", "checkpoint_every", "threads", "prefetch_batches"):
        del sections["train"][name]
    versions = _versions(inputs, settings.layout)
    text = json.dumps([_LAYOUT, sections, versions, inputs.spec.to_json(), distributed.world_size()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _versions(inputs: Inputs, layout: Warehouse) -> list[dict[str, Any]]:
    """The tables read, with paths that a moved warehouse keeps."""
    return [asdict(version) | {"uri": layout.relative(version.uri)} for version in inputs.versions]


def _save_trained(
    inputs: Inputs, candidate: Candidate, outcome: Outcome, fitted: dict[str, Outcome], tried: list[Candidate]
) -> TrainMetrics:
    """Save the model under its own id, and the one that was validated; returns what the run record says of them."""
    settings = candidate.settings
    facts = {"trained_on": _versions(inputs, settings.layout), "made_with": inputs.made_with}
    model_uri, identity = save_model(settings.layout.models, outcome.tower, outcome.spec, facts)
    validated = fitted.get(candidate.name)
    validated_uri = save_model(settings.layout.models, validated.tower, validated.spec, facts)[0] if validated else ""
    rates = [report.pairs_per_second for report in outcome.reports]
    waits = [report.waiting for report in outcome.reports]
    return TrainMetrics(
        identity,
        model_uri,
        inputs.vocabulary_hash,
        parameter_counts(outcome.tower),
        outcome.steps,
        round(float(np.median(rates))) if rates else 0,
        round(float(np.mean(waits)), 3) if waits else 0,
        distributed.world_size(),
        outcome.precision,
        outcome.skipped_steps,
        preset=candidate.name,
        choice=_choice(candidate, fitted, tried),
        candidates={name: _figures(one) for name, one in fitted.items()},
        validated_model_uri=validated_uri,
    )


def _figures(one: Outcome) -> CandidateMetrics:
    assert one.best is not None
    unseen = None if one.best.of_unseen != one.best.of_unseen else round(one.best.of_unseen, 5)
    return CandidateMetrics(one.steps, round(one.best.of_all, 5), unseen, round(one.best.worth, 5))


def _choice(candidate: Candidate, fitted: dict[str, Outcome], tried: list[Candidate]) -> str:
    """What was chosen and why, in one paragraph."""
    if not fitted:
        return f"{candidate.name}: {candidate.reason}; nothing was validated."
    best = fitted[candidate.name]
    others = [f"{name} {_said(one)}" for name, one in fitted.items() if name != candidate.name]
    against = f", against {' and '.join(others)}" if others else ""
    return (
        f"{candidate.name}: recall@10 of {_said(best)} on the validation window after {best.steps} steps{against}. "
        f"Chosen because {candidate.reason}." + ("" if best.steps else " No step of training made it better.")
    )


def _said(one: Outcome) -> str:
    """Recall of all, and what it is worth where unseen items make that less."""
    assert one.best is not None
    worth = "" if one.best.worth >= one.best.of_all else f" (worth {one.best.worth:.4f} for its new items)"
    return f"{one.best.of_all:.4f}{worth}"
