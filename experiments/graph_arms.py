"""What graph vectors bring the item tower: the paper's arms on the demo, and Online Retail beside co-occurrence.

    python -m experiments.graph_arms --folder arms [--online-retail by-day.tar.xz] [--only demo] [--steps N] [--set ...]

A shop is prepared once; its graph is built, trained and embedded once; then every arm trains, scores and evaluates, all
with equally many steps but for "auto". One JSON file an arm is kept in the folder, so that a run that was stopped goes
on where it was. `floor.gate` is off: what is measured is what was trained.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.quality import CO_OCCURRENCE, SHOPS, evaluated, run_stages
from pipeline.commands import ROOT, environment
from schemas.settings import load_settings

GRAPH_COMMANDS = ("build-item-graph", "train-graph", "embed-graph")
_TOWER = ("preset=small_log", "model.residual=false")
"""A tower over what an item is, whatever the queries are embedded by; nothing of who it is."""
_OF_GRAPH = "item_graph_images"


@dataclass(frozen=True)
class Arm:
    """One way to train the item tower.

    Attributes:
        name: As the table calls it.
        changes: Settings, `section.key=value`; {graph} stands for where the graph vectors lie.
        is_as_it_comes: With as many steps as the preset takes, in place of those that all arms have.
    """

    name: str
    changes: tuple[str, ...]
    is_as_it_comes: bool = False


def _sequence(*parts: str) -> str:
    return f"model.sequence={json.dumps(parts)}"


_ALL_PARTS = _sequence("text", "images", "frozen_text")
_GRAPH_AS_IMAGES = ("inputs.has_images=true", f"inputs.item_images={{{_OF_GRAPH}}}")
ARMS = {
    "demo": (
        Arm("text", (*_TOWER, _sequence("text", "frozen_text"))),
        Arm("image", (*_TOWER, _sequence("images"))),
        Arm("image, text", (*_TOWER, _ALL_PARTS)),
        Arm("image, text, graph", (*_TOWER, _ALL_PARTS, "graph.append_to_images=true")),
    ),
    "online-retail": (
        Arm("auto", (), is_as_it_comes=True),
        Arm("auto, graph", _GRAPH_AS_IMAGES, is_as_it_comes=True),
        Arm("tower", (*_TOWER, _sequence("text", "frozen_text"))),
        Arm("tower, graph", (*_TOWER, _ALL_PARTS, *_GRAPH_AS_IMAGES)),
    ),
}


def measure(shop: str, arm: Arm, arguments: argparse.Namespace) -> None:
    """Run what an arm needs that is not done yet, and keep its figures."""
    warehouse = (arguments.folder / shop).resolve()
    place = f"warehouse.uri={warehouse}"
    # Arms differ as models of different days do not: what the gates keep from being published is what is asked here.
    common = ["floor.gate=off", "gates.override=true", f"train.seed={arguments.seed}", place, *arguments.set]
    steps = () if arm.is_as_it_comes else (f"train.steps={arguments.steps}",)
    changes = [change.replace(f"{{{_OF_GRAPH}}}", str(warehouse / _OF_GRAPH)) for change in (*arm.changes, *steps)]
    settings = ["--settings", str(ROOT / SHOPS[shop].settings)]
    if not (warehouse / _OF_GRAPH).exists():
        data = f" --data {arguments.online_retail}" if SHOPS[shop].needs_archive else ""
        run_stages([*settings, *_set(common), "--prepare", SHOPS[shop].prepare + data])
        for command in GRAPH_COMMANDS:
            whole = [sys.executable, "-m", "pipeline.cli", command, *settings, *_set(common)]
            subprocess.run(whole, check=True, env=environment(), cwd=ROOT)
    run_stages([*settings, *_set([*common, *changes]), "--from", "build_vocabulary"])
    rows = evaluated(load_settings(ROOT / SHOPS[shop].settings, [place]))
    _result(arguments, shop, arm).write_text(json.dumps({"shop": shop, "arm": arm.name, "rows": rows}, indent=1))


def _set(changes: Sequence[str]) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


def _result(arguments: argparse.Namespace, shop: str, arm: Arm) -> Path:
    folder: Path = arguments.folder
    return folder / f"{shop}-{arm.name.replace(', ', '-')}-{arguments.seed}.json"


def report(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table in Markdown: each task's recall@10 of each arm with its interval, and over co-occurrence's best."""
    yield "| shop | task | slice | arm | recall@10 | co-occurrence | ratio |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for result in results:
        keys = sorted({(row["task"], row["slice"]) for row in result["rows"]})
        for task, part in keys:
            rows = {row["system"]: row for row in result["rows"] if (row["task"], row["slice"]) == (task, part)}
            if "itemsage" not in rows:
                continue
            own = rows["itemsage"]
            ends = "" if own["low"] is None else f" [{own['low']:.4f}, {own['high']:.4f}]"
            rival = max((rows[name]["value"] for name in CO_OCCURRENCE if name in rows), default=0.0)
            beside = f"{rival:.4f} | {own['value'] / rival:.3f}" if rival else "| "
            yield f"| {result['shop']} | {task} | {part} | {result['arm']} | {own['value']:.4f}{ends} | {beside} |"


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("graph-arms"), help="where everything is kept")
    parser.add_argument("--online-retail", default="", help="the archive of daily CSV files")
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=200, help="training steps of every arm but auto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value", help="for all arms of these shops")
    parser.add_argument("--arms", nargs="+", default=[], help="by name; all of them by default")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = []
    for shop in arguments.only:
        if SHOPS[shop].needs_archive and not arguments.online_retail:
            print(f"left out: {shop} needs --online-retail FILE")
            continue
        for arm in (arm for arm in ARMS[shop] if not arguments.arms or arm.name in arguments.arms):
            if not _result(arguments, shop, arm).exists():
                measure(shop, arm, arguments)
            results.append(json.loads(_result(arguments, shop, arm).read_text()))
    print("\n".join(["", *report(results)]))


if __name__ == "__main__":
    main()
