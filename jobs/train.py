"""Train from Spark: the entry that torchrun starts, started by pyspark's TorchDistributor instead.

Reads: training_<task>, item_features and item_counts, at the versions that the run records name.
Writes: the model, its checkpoints while it runs, and the run record of train; no table, so no "one row".
Safe to rerun: an unfinished run of the same inputs and settings resumes from its last checkpoint.

    spark-submit --properties-file spark-defaults.conf jobs/train.py --settings pipeline.toml

`train.processes` ranks run as one barrier stage, so the cluster needs as many free task slots at once. On one machine
(spark.master local[...]) they run as processes of the driver. Training reads its files through Petastorm either way.
"""

from __future__ import annotations

import os

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from jobs.runtime import command_line
from schemas.errors import SettingsError, leaving_a_worker
from schemas.lease import VARIABLE
from schemas.settings import Settings
from schemas.stages import TRAIN

STAGE = TRAIN


def train_in_executor(settings_json: str, lease: str = "") -> None:
    """What each rank runs; settings travel as text, since executors share neither arguments nor environment.

    Args:
        settings_json: The settings.
        lease: That of the run that started this one, under which the ranks work; see schemas/lease.py.
    """
    from itemsage_model.train import train_on_this_rank  # noqa: PLC0415 (imported on the executor)

    os.environ |= {VARIABLE: lease} if lease else {}
    with leaving_a_worker():
        train_on_this_rank(Settings.model_validate_json(settings_json))


def run(spark: SparkSession, settings: Settings) -> None:
    """Start the ranks and wait for them.

    Raises:
        SettingsError: the cluster has fewer task slots than ranks; the distributor would wait for them without a word.
    """
    is_local = (spark.sparkContext.master or "").startswith("local")
    slots = spark.sparkContext.defaultParallelism
    if not is_local and slots < settings.train.processes:
        raise SettingsError(
            f"train.processes: expected at most {slots}, the cluster's task slots; found {settings.train.processes}. "
            "Lower it, or give the application more cores."
        )
    distributor = TorchDistributor(num_processes=settings.train.processes, local_mode=is_local, use_gpu=False)
    distributor.run(train_in_executor, settings.model_dump_json(), os.environ.get(VARIABLE, ""))


def main() -> None:
    """Entry point of spark-submit."""
    command_line.main(STAGE.name, run, __doc__)


if __name__ == "__main__":
    main()
