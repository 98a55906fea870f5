"""The console command: `itemsage COMMAND --settings FILE [--set section.key=value ...]`.

    run                                 all stages, or those from one on (--from), and the summary
    embed-queries | embed-items | embed-images | train | validate | score | evaluate   one stage
    build-query-pairs | train-query-encoder   a text encoder of the shop's own (docs/search-text.md)
    build-item-graph | train-graph | embed-graph   vectors by what items were engaged with together (docs/graph.md)
    build-picture-pairs | train-pictures      a head over the pictures' vectors (docs/pictures.md)
    export-index                        an index of the published vectors, with its recall certificate
    doctor                              what would go wrong, before anything runs
    names                               where Spark's catalog has the tables that [inputs] names
    publish                             make a candidate live (score.publish = "candidate")
    versions | rollback                 what was published, and going back to it (--to VERSION)
    push                                what is published into a vector store, verified ([push])
    metrics                             how stages ended, for Prometheus
    search                              what the index answers: --text, --query, --item, --home, --samples; --why
    export-queries                      what answers queries without Spark and torch, as a folder (--to FOLDER)

Runs the same functions as `make pipeline` and as the stages' own commands. `run` takes all
stages, or those from one on, in one Spark session; then it prints the summary.

Exit code: that of the stage that failed (schemas/errors.py lists them), else 0.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deltalake.exceptions import DeltaError

from pipeline.commands import ROOT, environment, has_cluster, spark_submit, train_command
from pipeline.watch import end_group
from schemas.candidate import publish_candidate
from schemas.command_line import exit_code_of_errors, passed_on, settings_of, settings_parser
from schemas.errors import EXIT_FAILED, EXIT_SETTINGS, InputError, SettingsError
from schemas.lease import VARIABLE, WHOLE_RUN, hold
from schemas.published import published_versions, roll_back
from schemas.results import Result, ending_in_json, runs_since
from schemas.settings import Settings
from schemas.stages import (
    BUILD_ITEM_GRAPH,
    BUILD_PICTURE_PAIRS,
    BUILD_QUERY_PAIRS,
    EMBED_GRAPH,
    EMBED_IMAGES,
    EMBED_ITEMS,
    EMBED_QUERIES,
    EVALUATE,
    EXPORT_INDEX,
    SCORE_CATALOG,
    TRAIN,
    TRAIN_GRAPH,
    TRAIN_PICTURES,
    TRAIN_QUERY_ENCODER,
    VALIDATE,
    WHOLE,
    Stage,
    stage_named,
)

_WATCH = [sys.executable, "-I", "-S", str(ROOT / "pipeline" / "watch.py")]
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_EXPORT_QUERIES = "export-queries"
_SEARCH = "search"
_QUICK = ("doctor", "metrics", "versions", _EXPORT_QUERIES, _SEARCH)
_POINTER = ("publish", "rollback")
_NAMES = "names"
_SINGLE: dict[str, Stage[Any]] = {
    "embed-queries": EMBED_QUERIES, "embed-items": EMBED_ITEMS, "embed-images": EMBED_IMAGES,
    "train": TRAIN, "validate": VALIDATE, "score": SCORE_CATALOG, "evaluate": EVALUATE, "export-index": EXPORT_INDEX,
    "build-query-pairs": BUILD_QUERY_PAIRS, "train-query-encoder": TRAIN_QUERY_ENCODER,
    "build-item-graph": BUILD_ITEM_GRAPH, "train-graph": TRAIN_GRAPH, "embed-graph": EMBED_GRAPH,
    "build-picture-pairs": BUILD_PICTURE_PAIRS, "train-pictures": TRAIN_PICTURES,
}  # fmt: skip


def run_command(command: list[str], log: Path) -> None:
    """Run one command; its lines go to the terminal, what Java says to the log. Exits with its code if it fails.

    The command runs in a process group of its own. Whatever ends this process, and an end of the command that leaves
    others behind, ends the whole group; tables change by whole commits or not at all. A signal ends it from here, what
    no process can catch (SIGKILL) through pipeline/watch.py.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # What our caller has us ignore, as nohup does, stays ignored.
    signals = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, _end) for number in signals]
    try:
        with log.open("w") as stderr:
            watch = subprocess.Popen(_WATCH, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
            assert watch.stdin
            child = subprocess.Popen(command, stderr=stderr, env=environment(), start_new_session=True)
            try:
                watch.stdin.write(f"{child.pid}\n".encode())
                watch.stdin.flush()
                code = child.wait()
            finally:
                # A second signal must not keep the group from being ended.
                for number in signals:
                    signal.signal(number, signal.SIG_IGN)
                end_group(child.pid, child.poll)
                child.wait()
                watch.kill()
                watch.communicate()
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
    if code:
        print(f"  failed with exit code {code}; further messages: {log}", flush=True)
        sys.exit(code if code > 0 else EXIT_FAILED)


def _end(number: int, _: object) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def run_stages(log: Path, stages: list[str], passed: list[str], prepare: str = "") -> None:
    """Run some stages in order: in one Spark session, or, for training alone and without a cluster, without Spark."""
    trains = len(stages) == 1 and stage_named(stages[0]).launcher == "python"
    if trains and not prepare and not has_cluster():
        run_command(train_command(passed, stages[0]), log)
        return
    arguments = [*passed, "--stages", ",".join(stages), *(("--prepare", prepare) if prepare else ())]
    run_command(spark_submit("pipeline/one_session.py", arguments), log)


def stages_from(first: str, settings: Settings) -> list[str]:
    """Names of all stages that the settings ask for, from one on.

    Raises:
        SettingsError: there is no such stage.
    """
    names = [stage.name for stage in settings.stages]
    if first and first not in names:
        raise SettingsError(f"--from {first}: no such stage; the stages are {', '.join(names)}")
    return names[names.index(first) :] if first else names


def main() -> None:
    """Entry point of the console command."""
    command, *rest = sys.argv[1:] or ["--help"]
    if command == "push":
        from retrieval.push import main as push  # noqa: PLC0415 (only this command needs it)

        push(rest)
        return
    if command not in ("run", _NAMES, *_QUICK, *_POINTER, *_SINGLE):
        print(__doc__)
        sys.exit(0 if command in ("-h", "--help") else EXIT_SETTINGS)
    parser = settings_parser(f"itemsage {command}", __doc__)
    if command == "run":
        names = ", ".join(stage.name for stage in WHOLE)
        parser.add_argument("--from", dest="first", default="", help=f"first stage: {names}")
        parser.add_argument("--prepare", default="", help="job script that makes the input tables first")
    if command == "rollback":
        parser.add_argument(
            "--to", type=int, help="version of item_embeddings; by default the one that was live before"
        )
    if command == _EXPORT_QUERIES:
        parser.add_argument("--to", type=_local, required=True, help="a local folder that does not exist yet")
        parser.add_argument("--version", type=int, help="version of item_embeddings; by default the one that is live")
    if command == _SEARCH:
        from pipeline.search import add_arguments  # noqa: PLC0415 (imports torch)

        add_arguments(parser)
    arguments = parser.parse_args(rest)
    if command in _QUICK:
        with exit_code_of_errors():
            sys.exit(_quick(command, settings_of(arguments), arguments))
    stages: list[Result] = []
    with ending_in_json(command, stages):
        settings, started = settings_of(arguments), time.time()
        try:
            if command in _POINTER:
                _move_pointer(settings, command, getattr(arguments, "to", None))
            elif command == _NAMES:
                log = Path(settings.layout.logs) / "names.log"
                run_command(spark_submit("pipeline/resolve_names.py", passed_on(arguments)), log)
            else:
                run_pipeline(command, arguments, settings)
        finally:
            # What the stages' own processes have noted.
            with suppress(DeltaError, OSError, InputError):
                stages += runs_since(settings, started)


def _local(text: str) -> Path:
    """A path; of a URI it would be a folder that is called `s3:`."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"expected a path on this machine, from where you copy it; found {text}")
    return Path(text)


def _quick(command: str, settings: Settings, arguments: argparse.Namespace) -> int:
    """What only reads the warehouse; returns the exit code."""
    if command == "doctor":
        from pipeline.doctor import examine  # noqa: PLC0415 (only this command needs it)

        return examine(settings)
    if command == "metrics":
        from pipeline.run_metrics import metrics_of  # noqa: PLC0415 (only this command needs it)

        print(metrics_of(settings), end="")
        return 0
    if command == _SEARCH:
        from pipeline.search import search  # noqa: PLC0415 (imports torch)

        search(settings, arguments)
        return 0
    if command == _EXPORT_QUERIES:
        from retrieval.query_side import export_published  # noqa: PLC0415 (imports torch)

        settings.require_allowed("--to", str(arguments.to))
        print("\n".join(export_published(settings.layout, arguments.to, arguments.version)))
        return 0
    for number, one in enumerate(published_versions(settings.layout)):
        back = f", back from version {one.rolled_back_from['version']}" if one.rolled_back_from else ""
        model = f"model {one.model_id} of {one.metrics.trained_as_of}"
        print(
            f"{'live' if not number else '    '}  version {one.version}  {one.committed:%Y-%m-%d %H:%M} UTC  "
            f"as of {one.as_of}  {one.outputs[0].rows:,} items  {model}{back}"
        )
    return 0


def _move_pointer(settings: Settings, command: str, version: int | None) -> None:
    """Make the candidate, or a former version, live while nobody else publishes."""
    with hold(settings.layout, SCORE_CATALOG.name, str(settings.dates.as_of)):
        if command == "publish":
            from jobs.runtime import gates  # noqa: PLC0415 (imports Spark)

            gates.require_newer_date(gates.published(settings), settings)
            found = publish_candidate(settings)
        else:
            found = roll_back(settings, version)
    print(f"live: version {found.version}, model {found.model_id}, as of {found.as_of}", flush=True)


def run_pipeline(command: str, arguments: argparse.Namespace, settings: Settings) -> None:
    """Run all stages and print the summary, or run the one that the command names.

    Each log is written under the lease of its work alone: whoever is refused has not touched that of the one who runs.
    """
    passed, logs = passed_on(arguments), Path(settings.layout.logs)
    if command in _SINGLE:
        stage = _SINGLE[command].name
        with _holding(settings, stage):
            run_stages(logs / f"{stage}.log", [stage], passed)
        return
    stages, prepare = stages_from(arguments.first, settings), "" if arguments.first else arguments.prepare
    print(f"messages of Spark and of the trainer: {logs}", flush=True)
    started = time.monotonic()
    with _holding(settings, WHOLE_RUN):
        if SCORE_CATALOG.name in stages:
            from jobs.runtime import gates  # noqa: PLC0415 (imports Spark)

            # score_catalog would say so hours later.
            gates.require_newer_date(gates.published(settings), settings)
        run_stages(logs / "spark.log", stages, passed, prepare)
        print(f"all stages in {time.monotonic() - started:.0f} s\n")
        from pipeline.summary import print_summary  # noqa: PLC0415 (loaded when the work is done)

        print_summary(settings)


@contextmanager
def _holding(settings: Settings, work: str) -> Iterator[None]:
    """Hold the warehouse, for this process and for the stages that it starts."""
    with hold(settings.layout, work, str(settings.dates.as_of)) as lease:
        os.environ[VARIABLE] = lease.passed_on
        yield


if __name__ == "__main__":
    main()
