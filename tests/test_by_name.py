"""The whole pipeline on a shop that is known by names alone, in a Hive metastore: the same rows as by paths."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import commands
from schemas.published import live
from schemas.records import all_records
from schemas.settings import Settings, load_settings
from schemas.stages import PIPELINE
from schemas.storage import read_columns
from schemas.tables import INPUTS, ITEM_EMBEDDINGS
from tests.scripts.hive_shop import PARQUET

# The first test pays for two runs of the whole pipeline.
pytestmark = pytest.mark.timeout(900)

SHOP = """
[dates]
as_of = 2026-03-01
train_days = 20
test_days = 7
[[tasks]]
query_kind = "search"
engagement = "inquiry"
[features]
char_trigrams = 500
word_unigrams = 500
word_bigrams = 200
[query_encoder]
lsa_vocabulary = 400
[model]
width = 32
heads = 4
feed_forward_width = 32
head_width = 32
hash_rows = 500
[train]
batch_size = 50
negative_count = 50
steps = 4
warmup_steps = 2
threads = 1
[demo_world]
items = 150
events = 2000
seed = 3
"""


def run(*command: str, submit: str = "") -> str:
    """Run a command to its end; returns what it said."""
    environment = commands.environment() | ({"ITEMSAGE_SPARK_SUBMIT": submit} if submit else {})
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, cwd=commands.ROOT, env=environment
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def itemsage(command: str, settings: Path, *more: str, submit: str = "") -> str:
    return run(sys.executable, "-m", "pipeline.cli", command, "--settings", str(settings), *more, submit=submit)


@pytest.fixture(scope="module")
def by_path(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The shop whose tables lie in its warehouse, run by their paths."""
    folder = tmp_path_factory.mktemp("by_path")
    path = folder / "shop.toml"
    path.write_text(f'preset = "paper"\n[warehouse]\nuri = "{folder}/warehouse"\n{SHOP}')
    itemsage("run", path, "--prepare", "jobs/make_demo_world.py")
    return load_settings(path)


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What is added to spark-submit, so that Spark has a Hive metastore, in a folder of its own."""
    folder = tmp_path_factory.mktemp("hive")
    settings = {
        "spark.sql.catalogImplementation": "hive",
        "spark.sql.warehouse.dir": f"{folder}/tables",
        "spark.hadoop.javax.jdo.option.ConnectionURL": "jdbc:derby:;databaseName=metastore;create=true",
        "spark.hadoop.hive.exec.scratchdir": f"{folder}/scratch",
        "spark.driver.defaultJavaOptions": f"-Dderby.system.home={folder}",
    }
    return shlex.join([part for key, value in settings.items() for part in ("--conf", f"{key}={value}")])


@pytest.fixture(scope="module")
def shop_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings with the same shop's tables by their names, and nothing allowed but what the fixtures have made."""
    folder = tmp_path_factory.mktemp("by_name")
    path = folder / "shop.toml"
    inputs = "".join(f'{table.name} = "spark_catalog.`shop`.{table.name}"\n' for table in INPUTS)
    path.write_text(
        f'preset = "paper"\n[warehouse]\nuri = "{folder}/warehouse"\nname = "spark_catalog.itemsage"\n'
        f'[inputs]\n{inputs}[security]\nallowed_roots = ["{folder.parent}"]\n{SHOP}'
    )
    return path


@pytest.fixture(scope="module")
def said(by_path: Settings, hive: str, shop_file: Path) -> str:
    """What the run by names has said; its tables are the catalog's own, Delta and Parquet, at places that it chose."""
    saved = ["--settings", str(shop_file), "--save", by_path.warehouse.uri]
    command = commands.spark_submit("tests/scripts/hive_shop.py", saved)
    at = command.index("--properties-file") + 2
    run(*command[:at], *shlex.split(hive), *command[at:])
    return itemsage("run", shop_file, submit=hive)


def test_a_shop_that_is_known_by_names_gets_the_rows_that_it_gets_by_paths(
    by_path: Settings, said: str, shop_file: Path
) -> None:
    by_name = load_settings(shop_file)
    assert {one["status"] for one in json.loads(said.splitlines()[-1])["stages"]} == {"done"}
    rows = [embeddings(settings) for settings in (by_path, by_name)]
    assert rows[0].num_rows == 150
    assert rows[0].equals(rows[1])


def embeddings(settings: Settings) -> pa.Table:
    uri = settings.table_uri(ITEM_EMBEDDINGS.name)
    return read_columns(uri, None, ["item_id", "embedding"]).sort_by("item_id")


def test_every_table_of_the_run_has_its_name(said: str, hive: str, shop_file: Path) -> None:
    settings = load_settings(shop_file)
    command = commands.spark_submit("tests/scripts/hive_shop.py", ["--settings", str(shop_file), "--show"])
    at = command.index("--properties-file") + 2
    counts = json.loads(run(*command[:at], *shlex.split(hive), *command[at:]).splitlines()[-1])
    of_records = {one.table: one.rows for record in all_records(settings.layout) for one in record.outputs}
    assert {name: counts[name] for name in of_records} == of_records
    assert counts["items"] == counts["item_embeddings"] == 150
    assert counts["query_vectors"] > 0
    assert set(counts) == {*of_records, "items", "item_changes", "runs"}


def test_tools_without_spark_know_the_places_of_the_names(said: str, shop_file: Path) -> None:
    settings = load_settings(shop_file)
    assert "read engagement_logs (spark_catalog.`shop`.engagement_logs): Parquet" in said
    assert "embeddings: " in said
    assert "by name `spark_catalog`.`itemsage`.`item_embeddings`" in said
    assert "nearest neighbours" in said
    assert "titles cannot be read" not in said
    doctor = itemsage("doctor", shop_file)
    assert "faults: 0" in doctor
    for table in INPUTS:
        kind = "Parquet" if table.name in PARQUET else "Delta version"
        assert f"rows looked at, {settings.table_uri(table.name)}: {kind}" in doctor
    assert itemsage("versions", shop_file).startswith("live  version")
    assert 'stage="score_catalog"' in itemsage("metrics", shop_file)
    found = live(settings.layout)
    assert found is not None
    assert sum(len(batch) for batch in found.queries()) > 0


def test_run_twice_is_run_once_and_the_door_is_asked_again(said: str, hive: str, shop_file: Path) -> None:
    again = json.loads(itemsage("run", shop_file, submit=hive).splitlines()[-1])
    assert [one["status"] for one in again["stages"]] == ["already_done"] * len(PIPELINE)
    names = itemsage("names", shop_file, submit=hive)
    assert "items: spark_catalog.`shop`.items at " in names
