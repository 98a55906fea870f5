"""Train from Spark: the same entry as torchrun's, started by pyspark's TorchDistributor.

Reads: what itemsage_model/train.py reads.  Writes: what it writes; one row is as there.
Safe to rerun: an unfinished run of the same inputs and settings resumes from its last checkpoint.

    spark-submit --properties-file spark-defaults.conf jobs/train.py --settings pipeline.toml

`train.processes` ranks run as one barrier stage, so the cluster needs as many free task slots at once. On one machine
(spark.master local[...]) they run as processes of the driver. Training reads its files through Petastorm either way.
"""

from __future__ import annotations

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from jobs.runtime import command_line
from schemas.errors import TableError
from schemas.settings import Settings

STAGE = "train"


def train_on_this_rank(settings_json: str) -> None:
    """What each rank runs; settings travel as text, since executors share neither arguments nor environment."""
    from itemsage_model.train import train  # noqa: PLC0415
    from itemsage_model.training import distributed  # noqa: PLC0415 (imported on the executor)

    device = distributed.start()
    try:
        train(Settings.model_validate_json(settings_json), device)
    finally:
        distributed.stop()


def run(spark: SparkSession, settings: Settings) -> None:
    """Start the ranks and wait for them.

    Raises:
        TableError: the cluster has fewer task slots than ranks; the distributor would wait for them without a word.
    """
    is_local = (spark.sparkContext.master or "").startswith("local")
    slots = spark.sparkContext.defaultParallelism
    if not is_local and slots < settings.train.processes:
        raise TableError(
            "(settings)",
            "train.processes",
            expected=f"at most {slots}, the cluster's task slots",
            found=str(settings.train.processes),
            cure="Lower train.processes or give the application more cores.",
        )
    distributor = TorchDistributor(num_processes=settings.train.processes, local_mode=is_local, use_gpu=False)
    distributor.run(train_on_this_rank, settings.model_dump_json())


def main() -> None:
    """Entry point of spark-submit."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
