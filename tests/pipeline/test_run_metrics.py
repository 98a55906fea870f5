"""What a monitoring system scrapes: one value a stage, of its last run and of its last success."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from pipeline.run_metrics import metrics_of
from schemas.errors import TableError
from schemas.metrics import VocabularyMetrics
from schemas.records import RunRecord, TableVersion, write_record
from schemas.results import noted
from schemas.settings import Settings
from schemas.stages import BUILD_VOCABULARY


def test_the_last_run_and_the_last_success_are_told_apart(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    assert "stage=" not in metrics_of(settings)
    record = RunRecord(BUILD_VOCABULARY.name, VocabularyMetrics(), outputs=(TableVersion("vocabulary", "v", 3, 5),))
    write_record(settings.layout, record)
    for _ in range(2):
        with noted(settings, BUILD_VOCABULARY):
            pass
    bad = TableError("items", "title", expected="a", found="b", cure="c")
    with pytest.raises(TableError), noted(settings, BUILD_VOCABULARY):
        raise bad
    said = metrics_of(settings)
    of_stage = dict(re.findall(r'^(\w+)\{stage="build_vocabulary"\} (\S+)$', said, re.M))
    assert of_stage["itemsage_last_run_exit_code"] == "3"
    assert of_stage["itemsage_last_success_rows_written"] == "5"
    assert float(of_stage["itemsage_last_success_timestamp_seconds"]) < float(
        of_stage["itemsage_last_run_timestamp_seconds"]
    )
    assert 'itemsage_runs_total{stage="build_vocabulary",status="done"} 2' in said
    assert 'itemsage_runs_total{stage="build_vocabulary",status="failed"} 1' in said
    for line in said.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+\{stage="\w+"(,status="\w+")?\} [0-9.e+-]+', line), line
