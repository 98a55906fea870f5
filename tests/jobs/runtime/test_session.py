"""A session of a job: on the loopback address in local mode, and refused with wrong settings."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.runtime.session import open_session
from pipeline.commands import BIN, ROOT, jars_on_disk
from schemas.errors import SettingsError
from schemas.settings import WarehouseSettings
from tests.pipeline.shop import write_shop
from tests.sockets import off_loopback, watched


@pytest.mark.parametrize("key", ["spark.sql.files.ignoreCorruptFiles", "spark.sql.files.ignoreMissingFiles"])
@pytest.mark.parametrize("value", ["true", "TRUE"])
@pytest.mark.fault("C12", "loud", "a Spark setting that drops rows of damaged files: exit code 2, not 1")
def test_a_session_that_would_lose_rows_is_a_wrong_setting(spark: Any, key: str, value: str) -> None:
    spark.conf.set(key, value)
    try:
        with pytest.raises(SettingsError, match=f"{key} is true"):
            open_session("test", WarehouseSettings(uri="w"))
    finally:
        spark.conf.unset(key)


@pytest.mark.parametrize("scheme", ["s3", "s3a"])
@pytest.mark.fault("B4", "loud", "a warehouse on S3 with Delta's log store for one writer")
def test_a_warehouse_on_s3_needs_a_log_store_for_several_writers_or_a_word(spark: Any, scheme: str) -> None:
    uri, key = f"{scheme}://bucket/warehouse", f"spark.delta.logStore.{scheme}.impl"
    refused = rf"{uri}: expected {key} .*docs/cluster\.md.*warehouse\.single_writer = true"
    with pytest.raises(SettingsError, match=refused) as caught:
        open_session("test", WarehouseSettings(uri=uri))
    assert caught.value.exit_code == 2
    open_session("test", WarehouseSettings(uri=uri, single_writer=True))
    for store, is_refused in (("S3SingleDriverLogStore", True), ("S3DynamoDBLogStore", False)):
        spark.conf.set(key, f"io.delta.storage.{store}")
        try:
            with pytest.raises(SettingsError, match=store) if is_refused else nullcontext():
                open_session("test", WarehouseSettings(uri=uri))
        finally:
            spark.conf.unset(key)


@pytest.mark.fault("B4", "loud", "a job's command on a warehouse on S3: exit code 2 before it reads anything")
def test_a_job_on_s3_ends_before_it_reads(tmp_path: Path) -> None:
    command = [*readme_line("build_vocabulary"), "--settings", str(write_shop(tmp_path))]
    command += ["--set", "warehouse.uri=s3://bucket/warehouse"]
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2, done.stdout + done.stderr[-2000:]
    assert done.stdout.startswith("error: warehouse.uri s3://bucket/warehouse: expected spark.delta.logStore.s3.impl")


def address_off_loopback() -> str:
    """An address of this machine that others could reach; empty where it has none."""
    found = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries if entry.family == 2]
    return next((address for address in found if not address.startswith("127.")), "")


def readme_line(job: str) -> list[str]:
    """The README's spark-submit line of one job, with Delta's jars from this disk."""
    jars = (
        ["--conf", "spark.jars.packages=", "--conf", f"spark.jars={','.join(jars_on_disk())}"] if jars_on_disk() else []
    )
    return ["spark-submit", "--properties-file", "spark-defaults.conf", *jars, f"jobs/{job}.py"]


@pytest.mark.long
@pytest.mark.fault("S2", "loud", "the README's spark-submit line on a machine whose name is not loopback")
def test_a_job_started_as_the_readme_says_listens_on_loopback_alone(tmp_path: Path) -> None:
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable,
        # As of a machine in a network; unset, Spark would ask the machine's name.
        **({"SPARK_LOCAL_IP": address} if (address := address_off_loopback()) else {}),
    }  # fmt: skip
    command = [*readme_line("build_vocabulary"), "--settings", str(write_shop(tmp_path))]
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(command, cwd=ROOT, text=True, env=environment, stdout=log, stderr=log)
        found = watched(child)
    assert child.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert "java" in {name for _, name in found}
    assert not off_loopback(found)


@pytest.mark.fault("exit", "loud", "a value that Spark does not take: exit code 2 and Spark's own words")
def test_a_setting_that_spark_refuses_is_a_wrong_setting(tmp_path: Path) -> None:
    command = [*readme_line("build_vocabulary"), "--settings", str(write_shop(tmp_path))]
    command[1:1] = ["--conf", "spark.memory.fraction=7"]
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2, done.stdout + done.stderr[-2000:]
    assert done.stdout.startswith("error: Spark does not start with these settings: ")
    assert "spark.memory.fraction" in done.stdout
