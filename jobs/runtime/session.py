"""Opening a Spark session, nothing else. Settings live in spark-defaults.conf; only the address does not: see below."""

from __future__ import annotations

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark import SparkConf, SparkContext
from pyspark.errors import IllegalArgumentException
from pyspark.sql import SparkSession

from schemas.causes import cause_of
from schemas.errors import SettingsError
from schemas.settings import WarehouseSettings

_LOOPBACK = "127.0.0.1"
_SINGLE_WRITER = "S3SingleDriverLogStore"
"""Delta's log store for S3, unless told otherwise: it looks whether a version is there, and then writes it."""
_ADDRESSES = ("spark.driver.host", "spark.driver.bindAddress")


def open_session(name: str, warehouse: WarehouseSettings) -> SparkSession:
    """Open, or join, the Spark session of a job.

    In local mode the driver listens on the loopback address alone, whatever the machine's name resolves to. A
    properties file cannot say that: it does not know the master, and on a cluster executors must reach the driver.

    Args:
        name: The job's name, as Spark's history shows it.
        warehouse: What it writes.

    Raises:
        SettingsError: Spark refuses a setting, settings that would lose rows in silence are on, the session's time
            zone is not UTC, or several writers of the warehouse could lose each other's commits.
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
    require_safe_commits(spark, warehouse)
    return spark


def require_safe_commits(spark: SparkSession, warehouse: WarehouseSettings) -> None:
    """Refuse a warehouse on S3 where of two commits at once Spark would lose one, and nobody says that there is one.

    Raises:
        SettingsError: Spark has no log store for several writers, and the settings do not say that there is one.
    """
    scheme = warehouse.uri.partition("://")[0]
    key = f"spark.delta.logStore.{scheme}.impl"
    found = spark.conf.get(key, None) or _SINGLE_WRITER
    if scheme in ("s3", "s3a", "s3n") and found.endswith(_SINGLE_WRITER) and not warehouse.single_writer:
        raise SettingsError(
            f"warehouse.uri {warehouse.uri}: expected {key} to name a log store for several writers; found {found}, by "
            "which one of two commits at once is lost in silence. Give Spark such a log store (docs/cluster.md), or "
            "set warehouse.single_writer = true where nothing else ever writes this warehouse at the same time."
        )
