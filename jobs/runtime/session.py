"""Opening a Spark session, nothing else. Settings live in spark-defaults.conf; only the address does not: see below."""

from __future__ import annotations

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark import SparkConf, SparkContext
from pyspark.errors import IllegalArgumentException
from pyspark.sql import SparkSession

from schemas.causes import cause_of
from schemas.errors import SettingsError

_LOOPBACK = "127.0.0.1"
_ADDRESSES = ("spark.driver.host", "spark.driver.bindAddress")


def open_session(name: str) -> SparkSession:
    """Open, or join, the Spark session of a job.

    In local mode the driver listens on the loopback address alone, whatever the machine's name resolves to. A
    properties file cannot say that: it does not know the master, and on a cluster executors must reach the driver.

    Args:
        name: The job's name, as Spark's history shows it.

    Raises:
        SettingsError: Spark refuses a setting, settings that would lose rows in silence are on, or the session's time
            zone is not UTC.
    """
    builder = SparkSession.builder.appName(name)
    if SparkContext._active_spark_context is None:
        SparkContext._ensure_initialized()  # so that SparkConf has what spark-submit was given
        given = SparkConf()
        if given.get("spark.master", "local").startswith("local"):
            for key in _ADDRESSES:
                if not given.contains(key):
                    builder = builder.config(key, _LOOPBACK)
    try:
        spark = builder.getOrCreate()
    except (IllegalArgumentException, Py4JJavaError) as error:
        cause, _ = cause_of(error)
        raise SettingsError(f"Spark does not start with these settings: {cause}") from error
    for key in ("spark.sql.files.ignoreCorruptFiles", "spark.sql.files.ignoreMissingFiles"):
        if (spark.conf.get(key, "false") or "").lower() == "true":
            raise SettingsError(f"{key} is true: rows of damaged files would vanish in silence. Set it to false.")
    zone = spark.conf.get("spark.sql.session.timeZone")
    if zone not in ("UTC", "Etc/UTC", "GMT", "Z"):
        raise SettingsError(
            f"spark.sql.session.timeZone is {zone}: dates would shift. Start the job with "
            "--properties-file spark-defaults.conf, or set it to UTC."
        )
    return spark
