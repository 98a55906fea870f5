"""Opening a Spark session, nothing else. Settings live in spark-defaults.conf, never here."""

from __future__ import annotations

from pyspark.sql import SparkSession

from schemas.errors import SettingsError


def open_session(name: str) -> SparkSession:
    """Open, or join, the Spark session of a job.

    Args:
        name: The job's name, as Spark's history shows it.

    Raises:
        SettingsError: settings that would lose rows in silence are on, or the session's time zone is not UTC.
    """
    spark = SparkSession.builder.appName(name).getOrCreate()
    for key in ("spark.sql.files.ignoreCorruptFiles", "spark.sql.files.ignoreMissingFiles"):
        if spark.conf.get(key, "false") == "true":
            raise SettingsError(f"{key} is true: rows of damaged files would vanish in silence. Set it to false.")
    zone = spark.conf.get("spark.sql.session.timeZone")
    if zone not in ("UTC", "Etc/UTC", "GMT", "Z"):
        raise SettingsError(
            f"spark.sql.session.timeZone is {zone}: dates would shift. Start the job with "
            "--properties-file spark-defaults.conf, or set it to UTC."
        )
    return spark
