"""Row 8: the whole pipeline at N, 2N and 4N items, events and training steps, each stage by its own command.

The demo's settings with two of its eight tasks, as each costs every size the same. Every size runs
all stages on a synthetic shop in a warehouse of its own, the making of the shop included.
Growth is what a size takes over what N takes, divided by how many times N it is: 1 is linear, and fixed costs make it
less; so the growth of what comes on top from 2N to 4N, over that from N to 2N, is printed beside it. Memory is the
most that any Python worker of Spark has held, stage by stage (the peak that the system keeps for every process, asked
for ten times a second, as a worker ends with its stage); the stages' drivers and the trainer are printed. One round
unless --rounds says more: a round takes minutes.

    python -m benchmarks.growth [--rounds N] [--small]
"""

from __future__ import annotations

import shlex
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from benchmarks.contest import Contender, Figures, Row, Turn, compete, judge, peak_bytes, require
from benchmarks.report import Options, main, print_outcome
from benchmarks.scoring_precision import recall_in_bfloat16
from benchmarks.spark_tables import ROOT
from pipeline.commands import environment, stage_command
from schemas.stages import MAKE_DEMO_WORLD, PIPELINE

FACTORS = (1, 2, 4)
_SAMPLE_SECONDS = 0.1
_DRIVER = "driver"
_TASKS = """
[[tasks]]
query_kind = "closeup"
engagement = "click"

[[tasks]]
query_kind = "search"
engagement = "click"
"""

Peaks = dict[str, dict[str, int]]
"""Stage -> kind of process (worker, driver) -> most bytes that one such process has held."""


def rows(options: Options) -> Iterator[Row]:
    """Run all sizes in turn."""
    items = options.choose(4000, 200)
    settings = options.scratch / "settings.toml"
    settings.write_text((ROOT / "demo.toml").read_text(encoding="utf-8") + _TASKS, encoding="utf-8")
    contenders = [
        Contender(f"{factor} x {items} items", pipeline_turn, (options.scratch, items, factor)) for factor in FACTORS
    ]
    outcome = compete(contenders, options.rounds or 1)
    print_outcome(f"the pipeline on {items} items and {20 * items} events, and multiples", "items", outcome)
    turns = [outcome.performances[contender.name].figures for contender in contenders]
    print_memory([figures[-1]["peaks"] for figures in turns])
    print_marginal(turns)
    first, *others = contenders
    for factor, contender in zip(FACTORS[1:], others, strict=True):
        slowness = outcome.ratios(first.name, contender.name)
        yield judge("8", f"time at {factor}N over {factor} x N's", "linear", slowness, at_most=1.1)
    for factor, figures in zip(FACTORS[1:], turns[1:], strict=True):
        disk = [own["disk"] / one["disk"] / factor for own, one in zip(figures, turns[0], strict=True)]
        yield judge("8", f"disk at {factor}N over {factor} x N's", "linear", disk, at_most=1.1)
    stage, growth = worst_memory(turns[0][-1]["peaks"], turns[-1][-1]["peaks"])
    name = f"peak of a Python worker, {FACTORS[-1]}N over N"
    yield judge("8", name, f"flat; the worst stage is {stage}", [growth], at_most=1.1)
    # Here, because here is a trained model.
    ratio, made_of = recall_in_bfloat16(options.scratch / f"warehouse-{FACTORS[-1]}")
    yield replace(judge("5", "recall@10 scored in bfloat16", "float32", [ratio]), why=made_of)


def pipeline_turn(scratch: Path, items: int, factor: int) -> Turn:
    """The pipeline on `factor` times so many items, by the settings in `scratch`."""
    warehouse = scratch / f"warehouse-{factor}"
    # As many steps more as there are pairs more.
    steps = max(1, items * factor // 100)
    changes = {
        "warehouse.uri": warehouse,
        "demo_world.items": items * factor,
        "demo_world.events": 20 * items * factor,
        "train.steps": steps,
        "train.warmup_steps": 1,
        "train.checkpoint_every": steps,
    }
    overrides = [f"{key}={value}" for key, value in changes.items()]
    passed = ["--settings", str(scratch / "settings.toml")]
    passed += [part for override in overrides for part in ("--set", override)]
    # Each stage as its own command, so that a worker's memory belongs to one stage.
    lines = [shlex.join(stage_command(stage, passed)) for stage in (MAKE_DEMO_WORLD, *PIPELINE)]
    command = ["sh", "-c", " && ".join(lines)]

    def turn() -> Figures:
        shutil.rmtree(warehouse, ignore_errors=True)
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=environment())
        peaks: Peaks = {}
        watch = threading.Thread(target=watch_memory, args=(process.pid, peaks), daemon=True)
        watch.start()
        code = process.wait()
        seconds = time.perf_counter() - started
        watch.join()
        require(code == 0, f"the pipeline failed with code {code}")
        disk = sum(file.stat().st_size for file in warehouse.rglob("*") if file.is_file())
        return {"units": items * factor, "seconds": seconds, "disk": disk, "peaks": peaks}

    return turn


def watch_memory(pid: int, peaks: Peaks) -> None:
    """Keep the most that any process of each stage has held, until the pipeline ends."""
    known: dict[int, tuple[str, str]] = {}
    while True:
        try:
            root = psutil.Process(pid)
            if root.status() == psutil.STATUS_ZOMBIE:
                return
            for process in root.children(recursive=True):
                note_memory(process, peaks, known)
        except psutil.Error:
            if not psutil.pid_exists(pid):
                return
        time.sleep(_SAMPLE_SECONDS)


def note_memory(process: psutil.Process, peaks: Peaks, known: dict[int, tuple[str, str]]) -> None:
    """Note a Python process under its stage and kind; `known` keeps those of processes seen before."""
    try:
        if process.pid not in known:
            command = process.cmdline()
            if not command or not Path(command[0]).name.startswith("python"):
                return
            lines = [command, *(parent.cmdline() for parent in process.parents())]
            stage = next((name for line in lines if (name := stage_of(line))), "")
            if not stage:
                return
            known[process.pid] = (stage, "worker" if "pyspark.daemon" in command else _DRIVER)
        held = peak_bytes(process.pid) or process.memory_info().rss
    except psutil.Error:  # it has just ended
        return
    stage, kind = known[process.pid]
    kinds = peaks.setdefault(stage, {})
    kinds[kind] = max(kinds.get(kind, 0), held)


def stage_of(command: list[str]) -> str:
    """The stage that a command line runs, or nothing."""
    if "itemsage_model.train" in command:
        return "train"
    return next((Path(part).stem for part in command if part.endswith(".py") and Path(part).parent.name == "jobs"), "")


def worst_memory(small: Peaks, large: Peaks) -> tuple[str, float]:
    """The stage whose workers' peak grows most, and how many times."""
    growths = {
        stage: kinds["worker"] / small[stage]["worker"]
        for stage, kinds in large.items()
        if "worker" in kinds and "worker" in small.get(stage, {})
    }
    stage = max(growths, key=lambda name: growths[name])
    return stage, growths[stage]


def print_memory(peaks: list[Peaks]) -> None:
    """Peaks by stage and size."""
    print(f"  {'peak MB of one Python process':<40}" + "".join(f"{f'{factor}N':>8}" for factor in FACTORS))
    for stage, kinds in peaks[0].items():
        for kind in sorted(kinds, reverse=True):
            cells = (f"{of.get(stage, {}).get(kind, 0) / 1e6:>8,.0f}" for of in peaks)
            print(f"  {stage + ', ' + kind:<40}{''.join(cells)}")


def print_marginal(turns: list[list[Figures]]) -> None:
    """What comes on top from 2N to 4N, over twice what comes on top from N to 2N: 1 is linear, whatever is fixed."""
    for name, unit, scale in (("seconds", "s", 1.0), ("disk", "MB", 1e6)):
        one, two, four = (statistics.median(turn[name] for turn in figures) / scale for figures in turns)
        growth = (four - two) / (2 * (two - one)) if two > one else float("nan")
        print(f"  {name}: {one:,.0f}, {two:,.0f}, {four:,.0f} {unit}; growth of what comes on top {growth:.2f}")


if __name__ == "__main__":
    main("benchmarks.growth")
