"""Online Retail: what each kind of dirt does to a row, and that no row of the real archive is lost."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest
from chispa import assert_df_equality
from pyspark.sql import DataFrame, SparkSession

from examples.online_retail import cold, prepare
from examples.online_retail.raw_rows import BASKET_CUT, CSV_COLUMNS, RAW_ROWS, checked_lines, read_archive, split_rows
from examples.online_retail.returns import returned_lines, without_returned
from jobs.transforms.quarantine import accepted
from schemas.errors import SettingsError, TableError
from schemas.settings import Settings, load_settings
from schemas.spark import struct_type
from schemas.tasks import Task

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = ROOT.parent / "shared" / "data" / "online-retail" / "by-day.tar.xz"
SETTINGS = ROOT / "examples" / "online_retail" / "settings.toml"
COLD = SETTINGS.with_name("cold.toml")

HEADER = ",".join(CSV_COLUMNS)
MUG = "1,20001,RED METAL MUG,6,2011-07-01 08:26:00,2.55,17850.0,United Kingdom"
BOWL = "1,20002b, GLASS  BOWL ,1,2011-07-01 08:27:00,1.25,17850.0,United Kingdom"


def checked(spark: SparkSession, *lines: str) -> DataFrame:
    rows = [("2011-07-01.csv", number, *line.split(",")) for number, line in enumerate(lines, start=1)]
    return checked_lines(spark.createDataFrame(rows, struct_type(RAW_ROWS)))


def fates(spark: SparkSession, *lines: str) -> list[str]:
    """What became of each line, in their order."""
    used, rejected = split_rows(checked(spark, *lines))
    found = {row["row_number"]: row["reason"] for row in rejected.collect()}
    found |= {row["row_number"]: "used" for row in used.collect()}
    return [found[number] for number in range(1, len(lines) + 1)]


def test_every_kind_of_dirt_has_its_reason(spark: SparkSession) -> None:
    cases = {
        MUG: "used",
        BOWL: "used",
        "C2,20001,RED METAL MUG,-6,2011-07-01 08:26:00,2.55,17850.0,United Kingdom": "cancellation",
        "1,POST,POSTAGE,1,2011-07-01 08:26:00,18.0,17850.0,United Kingdom": "non_product_code",
        "3,20001,,5,2011-07-01 08:26:00,0.0,,United Kingdom": "no_description",
        "3,20001,damages?,-5,2011-07-01 08:26:00,0.0,,United Kingdom": "warehouse_note",
        "3,20001,RED METAL MUG,-5,2011-07-01 08:26:00,0.0,,United Kingdom": "quantity_not_positive",
        "3,20001,RED METAL MUG,5,2011-07-01 08:26:00,0.0,,United Kingdom": "price_not_positive",
        "3,20001,RED METAL MUG,5,yesterday,1.0,,United Kingdom": "unreadable",
        MUG.replace(",6,", ",2,"): "repeated_item_in_basket",
        MUG.replace("1,20001", "4,20001"): "lone_item_in_basket",
    }
    assert fates(spark, *cases) == list(cases.values())
    assert fates(spark, MUG, BOWL, MUG) == ["used", "used", "duplicate_row"]


def test_two_letter_cases_are_one_item(spark: SparkSession) -> None:
    assert fates(spark, MUG, BOWL, BOWL.replace("20002b, ", "20002B ,")) == ["used", "used", "repeated_item_in_basket"]


def test_a_basket_is_cut_whatever_the_order_of_its_lines(spark: SparkSession) -> None:
    lines = [MUG.replace("20001", f"{20001 + number}") for number in range(BASKET_CUT + 3)]
    verdicts = fates(spark, *lines)
    assert verdicts.count("used") == BASKET_CUT
    assert verdicts.count("beyond_basket_cut") == 3
    assert fates(spark, *reversed(lines)) == verdicts[::-1]


def test_items_take_their_most_frequent_name(spark: SparkSession) -> None:
    renamed = [
        MUG.replace("RED METAL MUG", name).replace("1,", f"{n},", 1) for n, name in enumerate(["B CUP", "A CUP"])
    ]
    purchases = accepted(checked(spark, *renamed, renamed[0].replace("B CUP", " A  CUP "), BOWL))
    tied = accepted(checked(spark, *renamed))
    schema = "item_id string, title string, colors array<string>, materials array<string>"
    expected = spark.createDataFrame([("20001", "A CUP", [], []), ("20002B", "GLASS BOWL", [], ["glass"])], schema)
    assert_df_equality(prepare.build_items(purchases).orderBy("item_id"), expected, ignore_nullable=True)
    assert [row["title"] for row in prepare.build_items(tied).collect()] == ["A CUP"]


def test_every_item_is_a_closeup_query(spark: SparkSession) -> None:
    items = prepare.build_items(checked(spark, MUG))
    expected = spark.createDataFrame(
        [("item:20001", "closeup", "RED METAL MUG", "20001")],
        "query_id string, query_kind string, text string, query_item_id string",
    )
    assert_df_equality(prepare.build_queries(items), expected, ignore_nullable=True)


def test_each_ordered_pair_of_a_basket_is_one_checkout_in_utc(spark: SparkSession) -> None:
    used, _ = split_rows(checked(spark, MUG, BOWL))
    # 08:26 in July is British Summer Time; the basket's first line counts.
    at = datetime(2011, 7, 1, 7, 26)
    expected = spark.createDataFrame(
        [
            ("1|20001|20002B", at, "17850", "item:20001", "20002B", "checkout"),
            ("1|20002B|20001", at, "17850", "item:20002B", "20001", "checkout"),
        ],
        "event_id string, event_ts timestamp, user_id string, query_id string, item_id string, engagement string",
    )
    events = prepare.build_engagement_logs(used).orderBy("event_id")
    assert_df_equality(events, expected, ignore_nullable=True)


def returns(spark: SparkSession, *lines: str) -> tuple[list[tuple[int, str]], list[tuple[str, ...]]]:
    """The numbers of the lines that are returns, with their baskets; and the engagements that they give."""
    rows = checked(spark, *lines)
    used, rejected = split_rows(rows)
    returned = returned_lines(rows, used)
    kept = {row["row_number"] for row in without_returned(rejected, returned).collect()}
    found = sorted((row["row_number"], row["basket"]) for row in returned.collect())
    both = {row["row_number"] for row in used.collect()} | {number for number, _ in found}
    assert not kept & both
    assert kept | both == set(range(1, len(lines) + 1))
    counts = prepare.build_accounting(used, returned, without_returned(rejected, returned)).collect()
    assert sum(row["row_count"] for row in counts) == len(lines)
    return found, sorted(tuple(map(str, row)) for row in prepare.build_returns(returned, used).collect())


def test_a_cancelled_line_is_a_return_of_the_latest_earlier_basket_with_the_item(spark: SparkSession) -> None:
    later = [line.replace("1,", "7,", 1).replace("07-01", "07-03") for line in (MUG, BOWL)]
    last = [line.replace("1,", "8,", 1).replace("07-01", "07-09") for line in (MUG, BOWL)]
    stranger = [line.replace("1,", "9,", 1).replace("17850", "99") for line in (MUG, BOWL)]
    cancelled = "C2,20001,RED METAL MUG,-6,2011-07-05 08:00:00,2.55,17850.0,United Kingdom"
    lines = [MUG, BOWL, *later, *last, *stranger, cancelled, cancelled.replace("-6", "-1"),
             cancelled.replace("17850.0", "98"), cancelled.replace("17850.0", ""),
             cancelled.replace("20001", "20009"), cancelled.replace("07-05", "06-05")]  # fmt: skip
    found, events = returns(spark, *lines)
    assert found == [(9, "7"), (10, "7")]
    assert events == [
        ("C2|7|20002B|20001", "2011-07-05 07:00:00", "17850", "item:20002B", "20001", "return"),
    ]


def test_a_cold_slice_has_so_many_pairs_no_held_out_target_and_the_whole_test_window(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold, "TRAINING_PAIRS", 80)
    dates = load_settings(COLD).dates
    days = (datetime(2010, 11, 30), datetime(2011, 7, 1), datetime(2011, 11, 3), datetime(2011, 11, 20))
    rows = [
        (f"{day.month}{basket}|{query}|{item}", day, f"item:{query}", f"{item}")
        for day in days
        for basket in range(12)
        for query in range(basket % 3, 20, 4)
        for item in range(basket % 2, 20, 3)
        if query != item
    ]
    schema = "event_id string, event_ts timestamp, query_id string, item_id string"
    slices = [
        [tuple(row) for row in cold.cold_slice(spark.createDataFrame(order, schema), dates).collect()]
        for order in (rows, rows[::-1])
    ]
    assert sorted(slices[0]) == sorted(slices[1])
    held_out = {f"{item}" for item in range(20) if hashlib.md5(f"{item}".encode()).hexdigest() < "8"}
    training = [row for row in slices[0] if row[1] == days[1]]
    assert len({row[2:] for row in training}) == 80
    assert 0 < len(held_out) < 20
    assert not held_out & {row[3] for row in training}
    assert len(training) > 80, "pairs that two of the taken baskets have count twice"
    assert sorted(row for row in slices[0] if row not in training) == sorted(row for row in rows if row[1] == days[3])


def archive_of(folder: Path, content: str) -> str:
    path = folder / "days.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        member = tarfile.TarInfo("by-day/2011-07-01.csv")
        member.size = len(content.encode())
        archive.addfile(member, io.BytesIO(content.encode()))
    return str(path)


def test_the_archive_is_read_as_text_with_the_place_of_each_row(tmp_path: Path) -> None:
    rows = read_archive(archive_of(tmp_path, f'{HEADER}\n{MUG}\n2,00123,"MUG, LARGE",,,,,\n'))
    assert rows.column_names == list(RAW_ROWS.column_names)
    assert rows["stock_code"].to_pylist() == ["20001", "00123"]
    assert rows.slice(1).to_pylist()[0]["description"] == "MUG, LARGE"
    assert rows.select(["source_file", "row_number"]).to_pylist()[1] == {
        "source_file": "2011-07-01.csv",
        "row_number": 2,
    }


def test_another_file_is_refused(tmp_path: Path, make_settings: Callable[..., Settings]) -> None:
    with pytest.raises(TableError, match=r"found Invoice, StockCode in 2011-07-01.csv"):
        read_archive(archive_of(tmp_path, "Invoice,StockCode\n1,2\n"))
    with pytest.raises(TableError, match=r"expected a tar archive of daily CSV files at .*absent"):
        read_archive(str(tmp_path / "absent.tar.xz"))
    with pytest.raises(SettingsError, match="--data: name the archive"):
        prepare.run(None, make_settings(), None)  # type: ignore[arg-type]


def test_the_settings_split_the_log_where_it_should_be_split() -> None:
    settings = load_settings(SETTINGS)
    assert load_settings(COLD).dates == settings.dates
    assert [entry.task for entry in settings.tasks] == [Task("closeup", "checkout")]
    instants = (settings.dates.train_start, settings.dates.train_end, settings.dates.test_start, settings.dates.end)
    assert [f"{instant:%Y-%m-%d}" for instant in instants] == ["2010-12-01", "2011-11-01", "2011-11-08", "2011-12-10"]


@pytest.mark.skipif(not ARCHIVE.exists(), reason=f"the Online Retail archive is not at ../shared: {ARCHIVE.name}")
def test_every_row_of_the_real_archive_is_accounted_for(spark: SparkSession) -> None:
    raw: pa.Table = read_archive(str(ARCHIVE))
    assert raw.num_rows == 541_909
    lines = checked_lines(spark.createDataFrame(raw)).persist()
    used, refused = (rows.persist() for rows in split_rows(lines))
    returned = returned_lines(lines, used).persist()
    accounting = prepare.build_accounting(used, returned, without_returned(refused, returned))
    counts = {row["reason"]: row["row_count"] for row in accounting.collect()}
    assert sum(counts.values()) == raw.num_rows
    assert counts["cancellation"] + counts["returned"] == 9_288
    assert counts["returned"] > 4_000
    # They are rejected where no [[negatives]] takes them, and must not stop the run.
    events, checkouts = prepare.build_returns(returned, used).count(), prepare.build_engagement_logs(used).count()
    assert 0 < events < 0.05 * checkouts
    for rows in (returned, refused, used, lines):
        rows.unpersist()
    assert counts["no_description"] > 1_400
    assert counts["used"] > 250_000
