"""Run the pipeline's stages in order, each as the command a scheduler would run, then print the summary.

    python -m pipeline --settings shop.toml [--from train] [--set section.key=value] [--prepare SCRIPT]

Exit code: that of the stage that failed (jobs/runtime/command_line.py lists them), else 0.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.class_archive import shared_classes
from pipeline.summary import print_summary
from schemas.errors import SettingsError
from schemas.settings import Settings, load_settings
from schemas.storage import absolute_uri

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
STAGES = (
    "embed_queries",
    "build_vocabulary",
    "build_item_features",
    "build_training_tables",
    "train",
    "score_catalog",
    "evaluate",
)


def spark_submit(script: str, arguments: list[str]) -> list[str]:
    """The spark-submit command of one job, with Delta's jars from disk where ITEMSAGE_DELTA_JARS names a folder."""
    command = [str(BIN / "spark-submit"), "--properties-file", str(ROOT / "spark-defaults.conf")]
    if folder := os.environ.get("ITEMSAGE_DELTA_JARS"):
        jars = ",".join(str(jar) for jar in sorted(Path(folder).resolve().glob("*.jar")))
        command += ["--conf", "spark.jars.packages=", "--conf", f"spark.jars={jars}"]
    command += shlex.split(os.environ.get("ITEMSAGE_SPARK_SUBMIT", ""))
    return [*command, str(ROOT / script), *arguments]


def stage_command(stage: str, settings: Settings, arguments: list[str]) -> list[str]:
    """What a scheduler would run for one stage."""
    if stage != "train":
        return spark_submit(f"jobs/{stage}.py", arguments)
    processes = ["--nproc-per-node", str(settings.train.processes)]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    launcher = [sys.executable, "-m", "torch.distributed.run", *processes, *rendezvous]
    return [*launcher, "-m", "itemsage_model.train", *arguments]


def run_stage(title: str, command: list[str], log: Path) -> None:
    """Run one command; its own lines go to the terminal, Spark's to the log. Exits with its code if it fails."""
    print(f"{title}", flush=True)
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONUNBUFFERED": "1",
        "SPARK_LOCAL_IP": os.environ.get("SPARK_LOCAL_IP", "127.0.0.1"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("w") as stderr, shared_classes(environment) as environment:
        stage = subprocess.Popen(command, stderr=stderr, env=environment)
        # A scheduler that ends the pipeline ends the stage too; tables change by whole commits or not at all.
        signal.signal(signal.SIGTERM, lambda *_: stage.terminate())
        code = stage.wait()
        if code:
            print(f"  failed with exit code {code}; Spark's and Python's messages: {log}", flush=True)
            sys.exit(code if code > 0 else 1)
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    """Parse, run, summarise."""
    parser = argparse.ArgumentParser(
        prog="pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c")
    parser.add_argument("--from", dest="first", default="", help=f"first stage: {', '.join(STAGES)}")
    parser.add_argument("--prepare", default="", help="script (and its arguments) that makes the input tables first")
    arguments = parser.parse_args()
    try:
        settings = load_settings(arguments.settings, arguments.set)
    except SettingsError as error:
        print(f"error: {error}")
        sys.exit(2)
    if arguments.first and arguments.first not in STAGES:
        print(f"error: --from {arguments.first}: no such stage; the stages are {', '.join(STAGES)}")
        sys.exit(2)
    passed = ["--settings", arguments.settings, *(part for one in arguments.set for part in ("--set", one))]
    logs = _log_folder(settings)
    print(f"messages of Spark and Python: {logs}/<stage>.log", flush=True)
    stages = STAGES[STAGES.index(arguments.first) :] if arguments.first else STAGES
    commands = [(stage, stage_command(stage, settings, passed)) for stage in stages]
    if arguments.prepare and not arguments.first:
        script, *extra = shlex.split(arguments.prepare)
        commands.insert(0, (Path(script).stem, spark_submit(script, [*passed, *extra])))
    started = time.monotonic()
    for number, (stage, command) in enumerate(commands, 1):
        run_stage(f"[{number}/{len(commands)}] {stage}", command, logs / f"{stage}.log")
    print(f"all stages in {time.monotonic() - started:.0f} s\n")
    print_summary(settings)


def _log_folder(settings: Settings) -> Path:
    """`<warehouse>/_logs`, or ./logs where the warehouse is no local folder."""
    uri = absolute_uri(settings.warehouse.uri)
    return Path("logs") if "://" in uri else Path(uri) / "_logs"


if __name__ == "__main__":
    main()
