"""Train from Spark: on a cluster by pyspark's TorchDistributor, on one machine as `itemsage_model.train` does itself.

Reads: training_<task>, item_features and item_counts, at the versions that the run records name.
Writes: the model, its checkpoints while it runs, and the run record of train; no table, so no "one row".
Safe to rerun: an unfinished run of the same inputs and settings resumes from its last checkpoint.

    spark-submit --properties-file spark-defaults.conf jobs/train.py --settings pipeline.toml

On a cluster `train.processes` ranks run as one barrier stage, so it needs as many free task slots at once, and every
executor must reach the warehouse under the same path or URI. Training reads its files through Petastorm either way.
"""

from __future__ import annotations

import sys

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from itemsage_model.train import start_ranks
from jobs.runtime import command_line
from schemas.errors import SettingsError, leaving_a_worker
from schemas.settings import Settings
from schemas.stages import TRAIN

STAGE = TRAIN


def train_in_executor(settings_json: str) -> None:
    """What each rank runs; settings travel as text, since executors share neither arguments nor environment."""
    from itemsage_model.train import train_on_this_rank  # noqa: PLC0415 (imported on the executor)

    with leaving_a_worker():
        train_on_this_rank(Settings.model_validate_json(settings_json))


def run(spark: SparkSession, settings: Settings) -> None:
    """Start the ranks and wait for them; exits with their code where they fail on this machine.

    Raises:
        SettingsError: the cluster has fewer task slots than ranks; the distributor would wait for them without a word.
    """
    if (spark.sparkContext.master or "").startswith("local"):
        if code := start_ranks(settings):
            sys.exit(code)
        return
    slots = spark.sparkContext.defaultParallelism
    if slots < settings.train.processes:
        raise SettingsError(
            f"train.processes: expected at most {slots}, the cluster's task slots; found {settings.train.processes}. "
            "Lower it, or give the application more cores."
        )
    distributor = TorchDistributor(num_processes=settings.train.processes, local_mode=False, use_gpu=False)
    distributor.run(train_in_executor, settings.with_absolute_places().model_dump_json())


def main() -> None:
    """Entry point of spark-submit."""
    command_line.main(STAGE.name, run, __doc__)


if __name__ == "__main__":
    main()
