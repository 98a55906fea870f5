"""`itemsage metrics`: what the table `runs` says, in the text format that Prometheus scrapes.

    itemsage metrics --settings shop.toml > /var/lib/node_exporter/itemsage.prom

An alert that always pays: the last success of score_catalog is older than two days.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from schemas.results import Result, runs_since
from schemas.settings import Settings

Metrics = dict[str, tuple[str, Callable[[Result], float]]]

_OF_LAST: Metrics = {
    "itemsage_last_run_exit_code": ("exit code of the stage's last run; 0 = done", lambda one: one.exit_code),
    "itemsage_last_run_timestamp_seconds": ("when the stage's last run began", lambda one: round(one.started_ts, 3)),
    "itemsage_last_run_duration_seconds": ("how long it took", lambda one: one.seconds),
}
_OF_LAST_DONE: Metrics = {
    "itemsage_last_success_timestamp_seconds": ("when the last run that was done, or had nothing to do, began",
                                                lambda one: round(one.started_ts, 3)),
    "itemsage_last_success_rows_written": ("rows of all tables that it wrote", lambda one: one.rows_written),
    "itemsage_last_success_rows_rejected": ("of them, those in rejected tables", lambda one: one.rows_rejected),
}  # fmt: skip


def metrics_of(settings: Settings) -> str:
    """All metrics, a line each, with a line of help and of type before each name."""
    runs = runs_since(settings, 0)
    last = {one.stage: one for one in runs}
    done = {one.stage: one for one in runs if one.exit_code == 0}
    lines: list[str] = []
    for of_stage, metrics in ((last, _OF_LAST), (done, _OF_LAST_DONE)):
        for name, (text, value) in metrics.items():
            lines += [*_head(name, text, "gauge"), *_lines(name, of_stage, value)]
    lines += _head("itemsage_runs_total", "runs of the stage that ended so", "counter")
    for (stage, status), count in sorted(Counter((one.stage, one.status) for one in runs).items()):
        lines.append(f'itemsage_runs_total{{stage="{stage}",status="{status}"}} {count}')
    return "\n".join(lines) + "\n"


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _lines(name: str, of_stage: dict[str, Result], value: Callable[[Result], float]) -> Iterator[str]:
    for stage, one in sorted(of_stage.items()):
        yield f'{name}{{stage="{stage}"}} {value(one)}'
