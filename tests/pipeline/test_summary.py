"""The summary: every stage's rows and counts, recall beside its baselines, neighbours, and how to read the table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from pipeline.summary import _how_to_read, print_summary
from schemas.arrow import arrow_schema
from schemas.errors import InputError
from schemas.metrics import (
    EvaluationMetrics,
    EventCounts,
    ItemMetrics,
    NoMetrics,
    ScoreMetrics,
    TaskCounts,
    TrainingTableMetrics,
    ValidateMetrics,
    Verdict,
)
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.settings import Settings
from schemas.stages import EVALUATE, SCORE_CATALOG
from schemas.tables import EVALUATION

METRICS = ("recall@10", "mrr")
DIFFERENCE = ("difference", "difference_low", "difference_high")
FIGURES = [
    ("search_click", "popularity", "all", 0.1, 9, 0.05, 0.15, 0.4, 0.3125, 0.5),
    ("search_click", "tfidf", "all", 0.52, 9, 0.4, 0.6, -0.02, -0.03, -0.01),
    ("search_click", "itemsage", "all", 0.5, 9, 0.4, 0.625),
    ("search_click", "itemsage", "unseen", 0.25, 4), ("search_save", "itemsage", "all", 0.75, 2),
    ("search_click", "tfidf", "unseen", 0.125, 4, None, None, 0.125),
    ("search_click", "itemsage", "tail", 0.0, 1),
    ("search_click", "int8:64", "all", 0.48, 9, 0.4, 0.6, 0.02, -0.01, 0.05),
    ("search_save", "int8:64", "all", 0.7, 2, None, None, 0.05), ("search_click", "int8:64", "unseen", 0.2, 4),
]  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path, make_settings: Any) -> Settings:
    """A warehouse after a whole run, as far as the summary reads it."""
    settings: Settings = make_settings()
    uri = settings.layout.uri
    ids = [f"i{number}" for number in range(60)]
    write_deltalake(f"{uri}/items", pa.table({"item_id": ids, "title": [f"title {number}" for number in range(60)]}))
    angles = np.linspace(0, np.pi / 2, 60)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    columns = {"item_id": ids, "embedding": pa.array(vectors.tolist(), pa.list_(pa.float32()))}
    write_deltalake(f"{uri}/item_embeddings", pa.table(columns))
    names = ("task", "system", "slice", "value", "pair_count", "low", "high", *DIFFERENCE)
    rows = [{"metric": metric} | dict(zip(names, figures, strict=False)) for figures in FIGURES for metric in METRICS]
    write_deltalake(f"{uri}/evaluation", pa.Table.from_pylist(rows, arrow_schema(EVALUATION)))
    embeddings = TableVersion("item_embeddings", f"{uri}/item_embeddings", 0, 60)
    events = EventCounts(12, 9, 2, 0, 1)
    for record in (
        RunRecord("prepare_my_shop", NoMetrics(), outputs=(TableVersion("items", f"{uri}/items", 0, 60),)),
        RunRecord("build_training_tables", TrainingTableMetrics({"search_click": TaskCounts(8, 9, 2, 2)}, events),
                  rejected={"engagement_logs: future": 1}, seconds=3.5),
        RunRecord("score_catalog", ScoreMetrics("model-1", "float32"), outputs=(embeddings,)),
        RunRecord("evaluate", EvaluationMetrics(60), outputs=(TableVersion("evaluation", f"{uri}/evaluation", 0, 5),)),
    ):  # fmt: skip
        write_record(settings.layout, record)
    return settings


def test_the_summary_shows_what_the_records_and_tables_say(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    print_summary(settings)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    stages = [line.split()[0] for line in lines if line.endswith(" s)")]
    assert stages == ["prepare_my_shop", "build_training_tables", "score_catalog", "evaluate"]
    assert "build_training_tables (3.5 s)" in lines
    assert "out items 60 version 0" in lines
    assert "rejected engagement_logs: future 1" in lines
    assert any(line.startswith('search_click: {"training_pairs": 8,') for line in lines)
    assert "model_id: model-1" in lines
    header = lines.index("task pairs itemsage popularity tfidf")
    assert lines[header + 1 : header + 6] == [
        "search_click 9 0.5000 0.1000 0.5200",
        "[.400, .625] [.050, .150] [.400, .600]",
        "search_save 2 0.7500 - -",
        "search_click: itemsage minus best rival (tfidf): -0.0200 [-.030, -.010]: "
        "below it, by more than chance explains",
        "",
    ]
    unseen = lines.index("task pairs itemsage tfidf", header + 1)
    assert lines[unseen + 1 : unseen + 4] == [
        "search_click 4 0.2500 0.1250", "search_click: itemsage minus best rival (tfidf): +0.1250", ""
    ]  # fmt: skip
    short = lines.index("form bytes search_click search_save")
    assert lines[short + 1 : short + 3] == ["int8:64 68 0.4800 [-.010, +.050] 0.7000", ""]
    assert "all held-out pairs, by short vectors" in lines[short - 1]
    assert "int8:64 68 0.2000" in lines[short + 3 :]
    first = lines.index("nearest neighbours") + 1
    assert lines[first].startswith("title ")
    assert [line.split()[0] for line in lines[first + 1 : first + 6]] == sorted(
        (line.split()[0] for line in lines[first + 1 : first + 6]), reverse=True
    )
    assert f"polars.scan_delta('{settings.layout.uri}/item_embeddings', version=0)" in lines[-1]


@pytest.mark.fault("t05", "recovered", "items as Parquet files in nested folders, of letter cases of their own")
def test_titles_are_read_through_the_door_of_the_jobs(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = tmp_path / "shop" / "2026"
    shop.mkdir(parents=True)
    titles = [f"named {number}" for number in range(60)]
    pq.write_table(
        pa.table({"Item_ID": [f"i{number}" for number in range(60)], "TITLE": titles}), shop / "part.parquet"
    )
    values = settings.model_dump(mode="json") | {"inputs": {"items": str(shop.parent)}}
    print_summary(Settings.model_validate_json(json.dumps(values)))
    assert "  named 1\n    1.000  named " in capsys.readouterr().out


@pytest.mark.fault("t15", "recovered", "items that cannot be read any more when the summary is printed")
def test_neighbours_are_shown_by_id_where_there_are_no_titles(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = settings.model_dump(mode="json") | {"inputs": {"items": f"{tmp_path}/gone"}}
    print_summary(Settings.model_validate_json(json.dumps(values)))
    said = capsys.readouterr().out
    assert "by item_id, as titles cannot be read: table items, column (all): expected a Delta or Parquet table" in said
    assert "  i1\n    1.000  i" in said
    assert "(no title)" in said
    assert "read them without Spark" in said


@pytest.mark.fault("S3", "recovered", "titles with terminal escapes, before the summary prints them")
def test_a_title_cannot_command_the_terminal(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [f"i{number}" for number in range(60)]
    titles = [f"\x1b]0;pwned\x07\x1b[2Jtitle\r{number}\u202e" for number in range(60)]
    write_deltalake(f"{settings.layout.uri}/items", pa.table({"item_id": ids, "title": titles}), mode="overwrite")
    print_summary(settings)
    said = capsys.readouterr().out
    assert r"\x1b]0;pwned\x07\x1b[2Jtitle\r" in said
    assert not set("\x1b\x07\r\u202e") & set(said)


@pytest.mark.parametrize("folder", ["shop", "mein Laden", "l\u00e4den"])
def test_the_line_that_reads_the_embeddings_does(folder: str, tmp_path: Path) -> None:
    uri = f"{tmp_path}/{folder}/item_embeddings"
    write_deltalake(uri, pa.table({"item_id": ["a"]}))
    line = _how_to_read(TableVersion("item_embeddings", uri, 0, 1))
    names: dict[str, Any] = {}
    exec(f"{line.partition('; ')[0]}; rows = {line.partition('; ')[2]}", names)
    assert len(names["rows"]) == 1


@pytest.mark.fault("F1", "loud", "a summary of figures that are not of the published embeddings, or of a mixture")
def test_figures_of_other_embeddings_are_not_shown(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated = read_record(settings.layout, EVALUATE)
    older = TableVersion("item_embeddings", f"{settings.layout.uri}/item_embeddings", 7, 60)
    write_record(settings.layout, replace(evaluated, inputs=(older,)))
    with pytest.raises(
        InputError, match=r"figures of version 0, which is published; found figures of version 7\. .*eval"
    ):
        print_summary(settings)
    write_record(settings.layout, replace(evaluated, inputs=(replace(older, version=0),)))
    print_summary(settings)
    capsys.readouterr()
    write_record(settings.layout, RunRecord("build_item_features", ItemMetrics(9, "new")))
    scored = read_record(settings.layout, SCORE_CATALOG)
    write_record(settings.layout, replace(scored, made_with={"vocabulary": "old"}))
    with pytest.raises(InputError, match=r"vocabulary: .*old in what score_catalog wrote\. Run score_catalog again"):
        print_summary(settings)
    assert capsys.readouterr().out == ""


def test_the_summary_says_which_slice_is_below_and_what_was_published(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    below = Verdict("search_click", "unseen", "bm25", 0.1, 0.2, -0.15, -0.05)
    write_record(settings.layout, RunRecord("validate", ValidateMetrics("model-1", "recall@10", (below,))))
    scored = read_record(settings.layout, SCORE_CATALOG)
    metrics = replace(scored.metrics, fallback="frozen_unseen", floor=("published instead: frozen vectors",))
    write_record(settings.layout, replace(scored, metrics=metrics))
    print_summary(settings)
    said = capsys.readouterr().out
    assert "  search_click, unseen: itemsage 0.1000, bm25 0.2000  [-.150, -.050]\n  published instead: frozen" in said
    assert "fallback: frozen_unseen" in said
    assert "verdicts" not in said
