"""Train from Spark: on a cluster as one barrier stage, on one machine as `itemsage_model.train` does itself.

Reads: training_<task>, item_features and item_counts, at the versions that the run records name.
Writes: the model, its checkpoints while it runs, and the run record of train; no table, so no "one row".
Safe to rerun: an unfinished run of the same inputs and settings resumes from its last checkpoint.

    spark-submit --properties-file spark-defaults.conf jobs/train.py --settings pipeline.toml

On a cluster `train.processes` ranks run as one barrier stage, so it needs as many free task slots at once, and every
executor must reach the warehouse under the same path or URI. Training reads its files through Petastorm either way.
"""

from __future__ import annotations

import os
import sys
import time

from pyspark.sql import SparkSession

from itemsage_model.train import start_ranks
from jobs.runtime import command_line
from jobs.runtime.barrier import at_fault, run_on_cluster
from schemas.errors import EXIT_FAILED, SettingsError
from schemas.lease import VARIABLE
from schemas.repeats import stop_if_done
from schemas.settings import Settings
from schemas.stages import TRAIN

STAGE = TRAIN
_SLOTS_SECONDS = 60


def run(spark: SparkSession, settings: Settings) -> None:
    """Start the ranks and wait for them; exits with their code where they fail.

    Raises:
        SettingsError: the cluster has fewer task slots than ranks; Spark would wait for them without a word.
    """
    stop_if_done(settings, TRAIN)
    if (spark.sparkContext.master or "").startswith("local"):
        if code := start_ranks(settings):
            sys.exit(code)
        return
    _require_slots(spark, settings.train.processes)
    absolute = settings.with_absolute_places()
    files = {"settings.json": absolute.model_dump_json(exclude_unset=True), "stage": STAGE.name}
    # Executors do not share the driver's environment: the ranks work under the lease of the run that started this.
    lease = {VARIABLE: os.environ.get(VARIABLE, "")}
    heard = at_fault(run_on_cluster(spark, "itemsage_model.rank", settings.train.processes, files, lease))
    print(heard.said, end="", flush=True)
    if heard.code:
        sys.exit(max(heard.code, EXIT_FAILED))  # below 0: killed


def _require_slots(spark: SparkSession, wanted: int) -> None:
    """Wait for the executors to register, as those of a session just opened have not."""
    deadline = time.monotonic() + _SLOTS_SECONDS
    while (slots := spark.sparkContext.defaultParallelism) < wanted and time.monotonic() < deadline:
        time.sleep(1)
    if slots < wanted:
        raise SettingsError(
            f"train.processes: expected at most {slots}, the cluster's task slots; found {wanted}. "
            "Lower it, or give the application more cores."
        )


def main() -> None:
    """Entry point of spark-submit."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
