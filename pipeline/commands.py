"""The commands of the pipeline's stages: what a scheduler would run, and what `itemsage` runs itself."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from pipeline.preflight import DELTA_JARS
from schemas.stages import TRAIN, Stage

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
_OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
IVY_CACHE = Path("~/.ivy2.5.2/jars").expanduser()


def extra_arguments() -> list[str]:
    """What ITEMSAGE_SPARK_SUBMIT adds to every spark-submit, such as `--master spark://host:7077`."""
    return shlex.split(os.environ.get("ITEMSAGE_SPARK_SUBMIT", ""))


def has_cluster() -> bool:
    """Whether ITEMSAGE_SPARK_SUBMIT names a master other than this machine."""
    found = re.findall(r"(?:--master[ =]|spark\.master=)(\S+)", " ".join(extra_arguments()))
    return bool(found) and not found[-1].startswith("local")


def spark_submit(script: str, arguments: list[str]) -> list[str]:
    """The spark-submit command of one script, with Delta's jars from disk where they are known to lie there."""
    command = [str(BIN / "spark-submit"), "--properties-file", str(ROOT / "spark-defaults.conf")]
    if jars := jars_on_disk():
        command += ["--conf", "spark.jars.packages=", "--conf", f"spark.jars={','.join(jars)}"]
    command += extra_arguments()
    return [*command, str(ROOT / script), *arguments]


def jars_on_disk() -> list[str]:
    """All jars of the folder that ITEMSAGE_DELTA_JARS names; else Delta's in the Ivy cache, if both are there.

    Spark resolves them from that cache itself, which takes it a second or two at every start.
    """
    if folder := os.environ.get("ITEMSAGE_DELTA_JARS"):
        return [str(jar) for jar in sorted(Path(folder).resolve().glob("*.jar"))]
    cached = [jar for name in DELTA_JARS for jar in sorted(IVY_CACHE.glob(f"*{name}"))]
    return [str(jar) for jar in cached] if len(cached) == len(DELTA_JARS) else []


def train_command(arguments: list[str], stage: str = TRAIN.name) -> list[str]:
    """The command of a stage that trains; it starts `train.processes` ranks itself, and keeps their exit codes."""
    return [sys.executable, "-m", f"itemsage_model.{stage}", *arguments]


def stage_command(stage: Stage[Any], arguments: list[str]) -> list[str]:
    """What a scheduler would run for one stage."""
    if stage.launcher == "python":
        return train_command(arguments, stage.name)
    return spark_submit(f"jobs/{stage.name}.py", arguments)


def environment() -> dict[str, str]:
    """The environment of every command: this Python on the PATH and in Spark's workers, loopback, one BLAS thread.

    What a launcher around us says of its own ranks is left out: the trainer gives its ranks theirs. On a cluster the
    driver's address and the workers' Python are what the caller's environment says.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_A_LAUNCHER}
    common = {
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    if has_cluster():
        return {"PYSPARK_PYTHON": sys.executable} | inherited | common
    local_ip = os.environ.get("SPARK_LOCAL_IP", "127.0.0.1")
    return inherited | common | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": local_ip}
