"""Several days in one test: a shop that changes daily, a scheduler that is killed at random, and a clean run beside it.

Each day the shop writes its tables anew, and a scheduler runs the project's commands: the daily path, once a week all.
There are bad days, a model change, one that is taken back, and kills. At the end every table must be what a warehouse
has that ran two times, undisturbed, on the same rows in other files.
"""

from __future__ import annotations

import json
import os
import random
import time
from base64 import b85decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote
from uuid import UUID

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import load_model
from schemas.errors import EXIT_INPUT
from schemas.published import DELETE, Published, changes_since, is_newest, live, published_versions
from schemas.records import all_records
from schemas.settings import Settings, load_settings
from schemas.storage import read_columns
from schemas.tables import (
    CHANGED_ITEM_FEATURES,
    EVALUATION,
    ITEM_CHANGES,
    ITEM_FEATURE_CHANGES,
    RUNS,
    VALIDATION,
)
from schemas.warehouse import Warehouse
from tests.month.scheduler import SUBMIT, Finished, Scheduler
from tests.month.shop import BAD_DAYS, as_of, spoil, write_day, write_settings, write_until

pytestmark = pytest.mark.timeout(1200)

MANY_KILLS = 100
"""From so many `--kills` on, it is a month; else a week."""

Row = tuple[bytes, str, str]
"""Embedding, model_id and features_hash of an item."""


@dataclass(frozen=True)
class Plan:
    """What happens on which day.

    Attributes:
        days: How many there are.
        idle: Days on which nothing runs, as at weekends: the next day has the changes of all of them.
        weekly: Days on which everything runs; the last of them makes the model that is live at the end.
        bad: Day -> what is wrong with its tables.
        taken_back: The day on which a second model is published and rolled back from; the days go on with the first.
        across: The day on which a model is rolled back whose text encoder and vocabulary are gone; 0 = none.
        unlucky: Day -> how many tries of its commands are killed.
        cold: Days whose commands are processes of their own.
    """

    days: int
    weekly: tuple[int, ...]
    bad: dict[int, str]
    taken_back: int
    unlucky: dict[int, int]
    across: int = 0
    cold: tuple[int, ...] = ()
    idle: tuple[int, ...] = ()


def a_week() -> Plan:
    return Plan(5, weekly=(0,), bad={2: "catalog"}, taken_back=1, unlucky={3: 1})


def a_month(draw: random.Random) -> Plan:
    bad = {3: "catalog", 10: "images", 18: "file"}
    # Trainings among them, that of the last model too.
    unlucky = {14: 1, 15: 1, 21: 2} | dict.fromkeys(draw.sample((1, 2, 4, 7, 9, 11, 16, 22, 23, 24), 4), 1)
    weekends = (5, 6, 12, 13, 19, 20)
    return Plan(26, (0, 7, 14, 21), bad, taken_back=15, unlucky=unlucky, across=8, cold=(4,), idle=weekends)


@dataclass
class Index:
    """What a nearest-neighbour index holds: loaded once, then kept by the change feed.

    Attributes:
        version: Of item_embeddings; None = it is empty.
        rows: item_id -> its row.
        followed: How often the feed said which items to change.
    """

    version: int | None = None
    rows: dict[str, Row] = field(default_factory=dict)
    followed: int = 0

    def follow(self, found: Published) -> None:
        """Go on to a later version; where the feed names items, they must be those that differ, and no others."""
        todo = None if self.version is None else changes_since(found.warehouse, self.version, found.version)
        new = rows_of(found)
        if todo is None:
            self.rows = new
        else:
            known = {name: new.get(name) for name in self.rows.keys() | new.keys()}
            assert {name for name, row in known.items() if self.rows.get(name) != row} == todo.keys()
            for name, change in todo.items():
                if change == DELETE:
                    del self.rows[name]
                else:
                    self.rows[name] = new[name]
            self.followed += found.version != self.version
        self.version = found.version


def rows_of(found: Published) -> dict[str, Row]:
    """The items of a version; each once."""
    rows: dict[str, Row] = {}
    for batch in found.items(["item_id", "embedding", "model_id", "features_hash"]):
        for row in batch.to_pylist():
            assert row["item_id"] not in rows
            embedding = pa.array(row["embedding"], pa.float32()).buffers()[1].to_pybytes()
            rows[row["item_id"]] = (embedding, row["model_id"], row["features_hash"])
    return rows


@dataclass(frozen=True)
class Lived:
    """What is left of the days: the shop's warehouse, and a clean run's.

    Attributes:
        plan: What was to happen.
        settings: The shop's.
        clean: The settings of the clean run.
        index: What an index that followed each day has.
        scheduler: It has the shop's settings.
    """

    plan: Plan
    settings: Settings
    clean: Settings
    index: Index
    scheduler: Scheduler


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Lived]:
    """All days, lived through, and the clean run after them."""
    seed, folder = int(os.environ.get("ITEMSAGE_MONTH_SEED", "1")), tmp_path_factory.mktemp("month")
    draw = random.Random(seed)
    plan = a_month(draw) if request.config.getoption("--kills", default=0) >= MANY_KILLS else a_week()
    print(f"seed {seed}: {plan}")
    settings_file, clean_file = (write_settings(folder / name) for name in ("shop", "clean"))
    settings, clean = load_settings(settings_file), load_settings(clean_file)
    index = Index()
    scheduler = Scheduler(folder / "scheduler", settings_file, draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ITEMSAGE_SPARK_SUBMIT", SUBMIT)
        try:
            for day in range(plan.days):
                live_through(day, seed, plan, scheduler, settings, index)
            scheduler.settings = clean_file
            in_peace(seed, plan, scheduler, folder / "clean" / "in")
            scheduler.settings = settings_file
            print(f"killed: {scheduler.killed}")
            yield Lived(plan, settings, clean, index, scheduler)
        except BaseException:
            print(scheduler.log())
            raise
        finally:
            scheduler.close()


# Four tests of one fixture: xdist gives a worker its next file as soon as two tests are left of the one that it has,
# and whatever came behind a single test of a quarter of an hour would wait for it.
of_those_days = pytest.mark.fault(
    "month", "recovered", "kills, bad days, late and repeated events, new models and a rollback for weeks"
)


@of_those_days
def test_days_of_a_shop_end_as_if_nothing_had_happened(lived: Lived) -> None:
    assert len(lived.scheduler.killed) >= len(lived.plan.unlucky) / 2
    require_equal_tables(lived.settings, lived.clean, lived.plan)


@of_those_days
def test_every_version_of_those_days_is_sound(lived: Lived) -> None:
    require_sound_versions(lived.settings.layout, lived.index)


@of_those_days
def test_every_run_of_those_days_is_on_record(lived: Lived) -> None:
    of_the_shop = lived.scheduler.settings
    require_every_run(lived.settings, [one for one in lived.scheduler.finished if one.settings == of_the_shop])


@of_those_days
def test_maintenance_removes_what_those_days_left(lived: Lived) -> None:
    require_no_litter(lived.settings, lived.scheduler, lived.plan, lived.index)


def live_through(day: int, seed: int, plan: Plan, scheduler: Scheduler, settings: Settings, index: Index) -> None:
    """One day of the shop and of its scheduler; the index follows what is published."""
    inputs, date, what = scheduler.settings.parent / "in", as_of(day), plan.bad.get(day, "")
    write_day(inputs, seed, day)
    if day in plan.idle:
        return
    if what:
        spoil(inputs, seed, day, what)
    scheduler.is_warm = day not in plan.cold
    scheduler.kills += plan.unlucky.get(day, 0)
    if day == plan.taken_back:
        take_back(date, scheduler, settings, index)
    if day and day == plan.across:
        go_back_across(date, scheduler, settings, index)
    before = live(settings.layout)
    code = scheduler.weekly(date) if day in plan.weekly else scheduler.daily(date)
    assert code == (BAD_DAYS[what] if what else 0), scheduler.log()
    found = live(settings.layout)
    assert found is not None
    assert is_newest(found)
    if what:
        assert found == before
    else:
        assert found.as_of == date
        index.follow(found)
        if day % 3 == 1:
            assert scheduler.daily(date) == 0
            assert live(settings.layout) == found


def take_back(date: str, scheduler: Scheduler, settings: Settings, index: Index) -> None:
    """Another model is published, and the one before brought back."""
    first = live(settings.layout)
    assert scheduler.from_training(date, "train.seed=5") == 0, scheduler.log()
    second = live(settings.layout)
    assert first is not None
    assert second is not None
    assert second.model_id != first.model_id
    index.follow(second)
    assert scheduler.roll_back(date) == 0, scheduler.log()
    third = live(settings.layout)
    assert third is not None
    assert rows_of(third) == rows_of(first)
    index.follow(third)


def go_back_across(date: str, scheduler: Scheduler, settings: Settings, index: Index) -> None:
    """A model is brought back that today's features do not fit: runs are refused until there is another one."""
    left = live(settings.layout)
    assert scheduler.roll_back(date) == 0, scheduler.log()
    found = live(settings.layout)
    assert left is not None
    assert found is not None
    assert found.model_id != left.model_id
    index.follow(found)
    assert scheduler.daily(date) == EXIT_INPUT, scheduler.log()
    assert live(settings.layout) == found
    assert scheduler.weekly(date) == 0, scheduler.log()
    new = live(settings.layout)
    assert new is not None
    assert new.model_id not in (found.model_id, left.model_id)
    index.follow(new)


def in_peace(seed: int, plan: Plan, scheduler: Scheduler, inputs: Path) -> None:
    """The same rows, in other files, through two runs: when the last model was trained, and on the last day."""
    scheduler.is_warm, scheduler.kills = True, 0
    trained, last = plan.weekly[-1], plan.days - 1
    write_until(inputs, seed, trained)
    assert scheduler.weekly(as_of(trained)) == 0, scheduler.log()
    write_until(inputs, seed, last)
    assert scheduler.daily(as_of(last), "rerun=true") == 0, scheduler.log()


def require_equal_tables(settings: Settings, clean: Settings, plan: Plan) -> None:
    """Row for row and bit for bit, but for the order of rows and when they were scored."""
    feeds = {ITEM_CHANGES.name, ITEM_FEATURE_CHANGES.name, CHANGED_ITEM_FEATURES.name}
    left_out = feeds | ({EVALUATION.name, VALIDATION.name} if plan.taken_back > plan.weekly[-1] else set())
    found = {record.stage: record for record in all_records(settings.layout)}
    compared = 0
    for record in all_records(clean.layout):
        for output in record.outputs:
            if output.table not in left_out:
                mine = found[record.stage].output(output.table)
                assert content(mine.uri, mine.version) == content(output.uri, output.version), output.table
                compared += output.rows
    assert compared > 1_000
    assert found["train"].metrics.model_id == next(
        record.metrics.model_id for record in all_records(clean.layout) if record.stage == "train"
    )


def content(uri: str, version: int | None) -> list[str]:
    rows = read_columns(
        uri, version, [name for name in DeltaTable(uri).schema().to_arrow().names if name != "scored_ts"]
    )
    return sorted(repr(row) for row in rows.to_pylist())


def require_sound_versions(warehouse: Warehouse, index: Index) -> None:
    """Each has one model in its items and its queries; an index that follows the feed ends as the table."""
    replayed = Index()
    for found in reversed(published_versions(warehouse)):
        replayed.follow(found)
        assert len(replayed.rows) == found.outputs[0].rows
        assert {model_id for _, model_id, _ in replayed.rows.values()} == {found.model_id}
        answers = [row for batch in found.queries(["query_id", "model_id"]) for row in batch.to_pylist()]
        assert len({row["query_id"] for row in answers}) == found.outputs[1].rows == len(answers)
        assert {row["model_id"] for row in answers} == {found.model_id}
    assert replayed.followed == index.followed
    assert replayed.followed >= 2
    assert (replayed.version, replayed.rows) == (index.version, index.rows)


def require_every_run(settings: Settings, finished: list[Finished]) -> None:
    """Each command that has ended has left a row for each stage that it came to."""
    runs = read_columns(settings.table_uri(RUNS.name), None, list(RUNS.column_names)).sort_by("started_ts").to_pylist()
    for one in finished:
        rows = [row for row in runs if one.began - 0.001 <= row["started_ts"].timestamp() <= one.ended]
        said = [(row["stage"], row["as_of"], row["exit_code"], row["status"]) for row in rows]
        codes = [0] * (len(said) - 1) + [one.code]
        wanted = [(stage, one.as_of, code) for stage, code in zip(one.stages, codes, strict=False)]
        assert [row[:3] for row in said] == wanted
        assert all((status == "failed") == bool(code) for *_, code, status in said)
        assert one.code or len(said) == len(one.stages)


def require_no_litter(settings: Settings, scheduler: Scheduler, plan: Plan, index: Index) -> None:
    """Whatever the kills have left is old one day; maintenance then removes all of it and nothing else."""
    root, old = Path(settings.layout.place()), time.time() - 3_600 * (settings.maintenance.retention_hours + 1)
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (old, old))
    print(f"litter: {litter(root)}")
    assert scheduler.maintain(as_of(plan.days - 1)) == 0, scheduler.log()
    assert litter(root) == []
    found = live(settings.layout)
    assert found is not None
    assert rows_of(found) == index.rows
    load_model(f"{settings.layout.models}/{found.metrics.model_id}", ItemTowerSpec)


def litter(root: Path) -> list[str]:
    """Files that no version of a table names, half-written ones, and checkpoints."""
    found = [*root.rglob("*.staged"), *(path for path in (root / "checkpoints").rglob("*") if path.is_file())]
    for log in root.glob("*/_delta_log"):
        named = set(named_files(log))
        found += [
            path
            for path in log.parent.rglob("*")
            if path.is_file() and log not in path.parents and str(path.relative_to(log.parent)) not in named
            and not path.name.endswith(".crc")
        ]  # fmt: skip
        found += [path for path in log.iterdir() if path.name.removeprefix(".").endswith(".tmp")]
    return sorted(str(path.relative_to(root)) for path in found)


def named_files(log: Path) -> Iterator[str]:
    """The files of data and deletion vectors that any version of a table has or had."""
    for commit in log.glob("*.json"):
        for line in commit.read_text().splitlines():
            for action in json.loads(line).values():
                if isinstance(action, dict) and "path" in action:
                    yield unquote(action["path"])
                    vector = action.get("deletionVector") or {}
                    if vector.get("storageType") == "u":
                        yield _vector_file(vector["pathOrInlineDv"])


_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"


def _vector_file(name: str) -> str:
    """The file of a deletion vector: Delta's log has the folder, if any, and the file's UUID in Z85."""
    folder, encoded = name[:-20], name[-20:]
    number = UUID(bytes=b85decode(encoded.translate(str.maketrans(_Z85, _B85))))
    return f"{folder}/deletion_vector_{number}.bin".lstrip("/")
