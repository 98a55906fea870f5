"""The front door: which commands it runs, in which order, with whose exit code, and that it leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from pipeline import cli, commands
from schemas.errors import SettingsError
from schemas.lease import VARIABLE, WHOLE_RUN, hold
from schemas.metrics import ScoreMetrics
from schemas.records import RunRecord, write_record
from schemas.settings import Settings, load_settings
from schemas.stages import EVALUATE, PIPELINE, TRAIN
from tests.pipeline.shop import write_shop


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(write_shop(tmp_path))


def test_stages_run_from_the_one_that_is_named(settings: Settings) -> None:
    names = [stage.name for stage in PIPELINE]
    assert cli.stages_from("", settings) == names
    assert cli.stages_from("train", settings) == ["train", "validate", "score_catalog", "evaluate"]
    with pytest.raises(SettingsError, match="--from scoring: no such stage; the stages are embed_queries"):
        cli.stages_from("scoring", settings)


def test_pictures_are_embedded_where_the_settings_name_them(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="--from embed_images: no such stage"):
        cli.stages_from("embed_images", settings)
    pictures, inputs = settings.pictures, settings.inputs
    pictured = settings.model_copy(
        update={
            "pictures": pictures.model_copy(update={"folder": "/models/clip"}),
            "inputs": inputs.model_copy(update={"item_images": ""}),
        }
    )
    assert cli.stages_from("embed_images", pictured)[:2] == ["embed_images", "embed_queries"]


def test_each_stage_is_a_command_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jar = tmp_path / "delta.jar"
    jar.touch()
    monkeypatch.setenv("ITEMSAGE_DELTA_JARS", str(tmp_path))
    monkeypatch.setenv("ITEMSAGE_SPARK_SUBMIT", "--master 'local[3]'")
    command = commands.stage_command(EVALUATE, ["--settings", "shop.toml"])
    assert command[0].endswith("/spark-submit")
    assert command[1:3] == ["--properties-file", str(commands.ROOT / "spark-defaults.conf")]
    assert f"spark.jars={jar}" in command
    assert command[-5:] == ["--master", "local[3]", str(commands.ROOT / "jobs/evaluate.py"), "--settings", "shop.toml"]


@pytest.mark.parametrize("name", ["embed-queries", "embed-items", "embed-images", "build-item-graph", "embed-graph"])
def test_what_runs_before_the_rest_of_a_day_is_a_command(
    name: str, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(cli, "run_stages", lambda log, stages, passed, prepare="": asked.append(stages))
    monkeypatch.setattr(sys, "argv", ["itemsage", name, "--settings", "demo.toml"])
    monkeypatch.setattr(cli, "settings_of", lambda arguments: settings)
    # It would stay in the environment of the tests that come after.
    monkeypatch.setattr(cli, "_holding", lambda *_: nullcontext())
    cli.main()
    assert asked == [[name.replace("-", "_")]]


def test_training_is_started_by_itself_and_not_by_a_launcher_that_loses_exit_codes() -> None:
    command = commands.stage_command(TRAIN, ["--settings", "shop.toml"])
    assert command == [sys.executable, "-m", "itemsage_model.train", "--settings", "shop.toml"]


def test_queries_are_exported_to_a_path_and_not_to_a_folder_that_is_called_like_a_uri(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["itemsage", "export-queries", "--settings", "none.toml", "--to", "s3://shop/q"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "--to: expected a path on this machine, from where you copy it; found s3://shop/q" in capsys.readouterr().err


def itemsage(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=commands.ROOT, timeout=120, check=False)


def test_what_is_wrong_with_the_command_line_is_said_with_exit_code_2(tmp_path: Path) -> None:
    path = str(write_shop(tmp_path))
    for arguments, said in (
        (["score", "--settings", f"{tmp_path}/none.toml"], "error: settings file"),
        (["run", "--settings", path, "--from", "scoring"], "error: --from scoring: no such stage"),
        (["evaluate", "--settings", path, "--set", "train.steps=many"], "train.steps"),
        (["publis"], "train | validate | score | evaluate   one stage"),
    ):
        done = itemsage(*arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert said in done.stdout


@pytest.mark.long
@pytest.mark.fault("exit", "loud", "bad input for a training of one and of two processes: exit code 3 from both")
def test_a_stage_that_fails_gives_its_exit_code(tmp_path: Path) -> None:
    """Training before any other stage: bad input, without Spark."""
    path = str(write_shop(tmp_path))
    for processes in (1, 2):
        done = itemsage("train", "--settings", path, "--set", f"train.processes={processes}")
        assert done.returncode == 3, done.stdout + done.stderr
        assert done.stdout.startswith("error: run record of build_training_tables: expected a complete run")
        assert f"further messages: {tmp_path}/warehouse/_logs/train.log" in done.stdout


@pytest.mark.fault("F1", "loud", "a whole run while another one writes the warehouse")
def test_a_second_run_is_refused_and_says_who_has_the_warehouse(tmp_path: Path, settings: Settings) -> None:
    with hold(settings.layout, WHOLE_RUN, "2026-02-27"):
        done = itemsage("run", "--settings", str(tmp_path / "shop.toml"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"found itemsage run of 2026-02-27, process {os.getpid()} on" in done.stdout


@pytest.mark.fault("F1", "loud", "one stage while another run writes the warehouse: its log stays as it is")
def test_a_refused_stage_does_not_touch_the_log_of_the_one_that_runs(tmp_path: Path, settings: Settings) -> None:
    logs = tmp_path / "warehouse" / "_logs"
    logs.mkdir(parents=True)
    for work, names in ((WHOLE_RUN, ["spark", "train"]), ("score_catalog", ["score_catalog"])):
        for name in names:
            (logs / f"{name}.log").write_text("of the one that runs")
        with hold(settings.layout, work, "2026-03-01"):
            for command in ("score", "train") if work == WHOLE_RUN else ("score",):
                done = itemsage(command, "--settings", str(tmp_path / "shop.toml"))
                assert done.returncode == 1, done.stdout + done.stderr
                assert f"found {work} of 2026-03-01" in done.stdout
        assert {path.stem: path.read_text() for path in logs.iterdir() if path.stem in names} == dict.fromkeys(
            names, "of the one that runs"
        )


def test_stages_of_one_date_that_run_side_by_side_have_logs_of_their_own(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    logs: list[Path] = []
    monkeypatch.setattr(cli, "run_command", lambda _, log: logs.append(log))
    monkeypatch.delenv(VARIABLE, raising=False)
    for command in ("train", "score", "evaluate"):
        monkeypatch.setattr(sys, "argv", ["itemsage", command, "--settings", str(tmp_path / "shop.toml")])
        cli.main()
        # Not by monkeypatch, which would put it back for the tests that follow.
        del os.environ[VARIABLE]
    assert [log.name for log in logs] == ["train.log", "score_catalog.log", "evaluate.log"]


@pytest.mark.fault("B2", "loud", "a whole run of an older date than the published one")
def test_a_run_of_an_older_date_is_refused_before_its_work(tmp_path: Path, settings: Settings) -> None:
    newer = RunRecord("score_catalog", ScoreMetrics("m", "float32"), settings={"dates": {"as_of": "2026-03-02"}})
    write_record(settings.layout, newer)
    done = itemsage("run", "--settings", str(tmp_path / "shop.toml"))
    assert done.returncode == 4, done.stdout + done.stderr
    assert "expected dates.as_of of 2026-03-02 or later, which is published; found 2026-03-01" in done.stdout
    assert "--set gates.override=true" in done.stdout
    assert not (tmp_path / "warehouse" / "_logs" / "spark.log").exists()


def test_doctor_and_help(tmp_path: Path) -> None:
    started = time.monotonic()
    done = itemsage("doctor", "--settings", str(write_shop(tmp_path)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faults: 0" in done.stdout
    assert time.monotonic() - started < 30
    assert itemsage("--help").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
@pytest.mark.fault("B3", "recovered", "the front door ended by SIGTERM, SIGKILL and Ctrl-C while a stage runs")
def test_whoever_ends_the_front_door_ends_all_that_it_started(tmp_path: Path, number: signal.Signals) -> None:
    """A command with a child of its own, as spark-submit has; both are gone when the front door is ended."""
    pids = tmp_path / "pids"
    script = tmp_path / "command.py"
    script.write_text(
        "import os, pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(pids)!r}).write_text(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(60)\n"
    )
    program = (
        "import signal, sys; from pathlib import Path; from pipeline import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"cli.train_command = lambda *_: [sys.executable, {str(script)!r}]\n"
        f"sys.argv = ['itemsage', 'train', '--settings', {str(write_shop(tmp_path))!r}]\n"
        "cli.main()\n"
    )
    pipe = subprocess.PIPE
    front = subprocess.Popen([sys.executable, "-c", program], cwd=commands.ROOT, stdout=pipe, stderr=pipe, text=True)
    deadline = time.monotonic() + 60
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    front.send_signal(number)
    out, errors = front.communicate(timeout=30)
    assert front.returncode == (-number if number is signal.SIGKILL else 128 + number)
    assert errors == ""
    if number is signal.SIGKILL:
        assert out == ""
    else:
        *said, last = out.splitlines()
        line = "error: interrupted. What is committed stands; run it again."
        assert said == ([line] if number is signal.SIGINT else [])
        ended = json.loads(last)
        assert (ended["status"], ended["exit_code"], ended["retry"]) == ("failed", 128 + number, True)
    for pid in map(int, pids.read_text().split()):
        while is_running(pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.fault("B3", "recovered", "Ctrl-C while `itemsage` is still importing")
@pytest.mark.parametrize("module", ["pydantic", "pipeline.cli", "pyarrow"])
def test_ctrl_c_is_heard_while_the_front_door_imports(module: str, tmp_path: Path) -> None:
    program = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"sys.argv[1:] = ['--settings', {str(write_shop(tmp_path))!r}]\n"
        "runpy.run_module('pipeline', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=commands.ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout == "error: interrupted. What is committed stands; run it again.\n"


def test_a_hangup_that_nohup_has_it_ignore_does_not_end_it(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hangup = "import os, signal; os.kill(os.getppid(), signal.SIGHUP)"
        cli.run_command([sys.executable, "-c", hangup], tmp_path / "log")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
