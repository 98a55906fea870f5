"""A Spark standalone cluster on the loopback address: a master and some workers of one core each, as processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyspark

FAST = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Java's options for work of seconds: the optimising compiler would not pay for itself."""

SPARK_CLASS = Path(pyspark.__file__).parent / "bin" / "spark-class"


def free_port() -> int:
    """A TCP port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def cluster(folder: Path, workers: int = 2, memory: str = "1g") -> Iterator[str]:
    """Start a master and workers; gives the master's URL, and ends all of them."""
    port, page = free_port(), free_port()
    url = f"spark://127.0.0.1:{port}"
    at = ["--host", "127.0.0.1"]
    commands = [["Master", *at, "--port", str(port), "--webui-port", str(page)]]
    commands += [
        [
            "Worker",
            *at,
            "--cores",
            "1",
            "--memory",
            memory,
            "--webui-port",
            "0",
            "--work-dir",
            str(folder / f"w{n}"),
            url,
        ]
        for n in range(workers)
    ]
    # Workers start executors with their own environment: a Python that does not find this project's folder.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "128m", "SPARK_NO_DAEMONIZE": "1"}
    environment["SPARK_DAEMON_JAVA_OPTS"] = FAST
    folder.mkdir(parents=True, exist_ok=True)
    started = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}{len(started)}.log").open("w")
            full = [str(SPARK_CLASS), f"org.apache.spark.deploy.{command[0].lower()}.{command[0]}", *command[1:]]
            started.append(subprocess.Popen(full, stdout=log, stderr=log, env=environment, cwd=folder))
            log.close()
        _wait_for(page, workers)
        yield url
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def _wait_for(page: int, workers: int, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{page}/json/", timeout=5) as answer:
            if answer.read().decode().count('"state" : "ALIVE"') >= workers:
                return
        assert time.monotonic() < deadline, "the cluster did not start"
        time.sleep(0.3)


def submit_arguments(url: str, package: Path) -> str:
    """What ITEMSAGE_SPARK_SUBMIT holds for this cluster."""
    return (
        f"--master {url} --py-files {package} "
        "--conf spark.driver.host=127.0.0.1 --conf spark.driver.bindAddress=127.0.0.1 "
        "--conf spark.executor.memory=700m --conf spark.driver.memory=1g "
        f"--conf spark.executor.extraJavaOptions='-Duser.timezone=UTC {FAST}'"
    )


if __name__ == "__main__":
    with cluster(Path(sys.argv[1])) as master:
        print(master, flush=True)
        time.sleep(float(sys.argv[2]))
