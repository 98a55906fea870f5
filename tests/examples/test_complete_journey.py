"""The Complete Journey: what each kind of dirt does to a row, who follows whom, and that no row is lost."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chispa import assert_df_equality
from pyspark.sql import DataFrame, SparkSession

from examples.complete_journey import prepare
from examples.complete_journey.raw_rows import (
    PRODUCTS,
    REJECTED_PRODUCTS,
    TRANSACTIONS,
    checked_products,
    checked_transactions,
    split_transactions,
)
from jobs.runtime.input_tables import read_input
from jobs.transforms.quarantine import accepted, rejected
from schemas.errors import SettingsError, TableError
from schemas.input_tables import find_input
from schemas.settings import Settings, load_settings
from schemas.spark import struct_type

SETTINGS = Path(__file__).resolve().parents[2] / "examples" / "complete_journey" / "settings.toml"
AT = datetime(2017, 7, 1, 22, 30)

CHIPS = ("1", "544", "GROCERY", "National", "BAG SNACKS", "POTATO CHIPS", "11 OZ")
EGGS = ("2", "69", "GROCERY", "Private", "EGGS", "EGGS", None)
BERRIES = ("3", "70", "MISCELLANEOUS", "National", None, "STRAWBERRIES", None)
PETROL = ("9", "71", "FUEL", "National", "COUPON/MISC ITEMS", "GASOLINE-REG UNLEADED", None)
SHELF = (CHIPS, EGGS, BERRIES, PETROL)


def products(spark: SparkSession, *rows: tuple[str | None, ...]) -> DataFrame:
    return checked_products(spark.createDataFrame(list(rows), struct_type(PRODUCTS)))


def purchase(basket: str, product: str, **changes: Any) -> tuple[Any, ...]:
    row = {
        "household_id": "7",
        "basket_id": basket,
        "product_id": product,
        "quantity": 1,
        "sales_value": 2.5,
        "retail_disc": 0.0,
        "coupon_disc": 0.0,
        "coupon_match_disc": 0.0,
        "transaction_timestamp": AT,
    } | changes
    return tuple(row[name] for name in TRANSACTIONS.column_names)


def split(spark: SparkSession, *rows: tuple[Any, ...], shelf: tuple[Any, ...] = SHELF) -> tuple[DataFrame, DataFrame]:
    transactions = spark.createDataFrame(list(rows), struct_type(TRANSACTIONS))
    return split_transactions(checked_transactions(transactions, products(spark, *shelf)))


def test_every_kind_of_product_has_its_reason(spark: SparkSession) -> None:
    renamed = (CHIPS[0], *PETROL[1:])  # of two rows the first by content is used: manufacturer 544
    nameless = ("4", "72", "MISCELLANEOUS", "National", None, None, "6 OZ")
    deposit = ("5", "73", "GROCERY", "National", "BOTTLE DEPOSITS", "BOTTLE DEPOSITS", None)
    unknown = (None, *EGGS[1:])
    checked = products(spark, *SHELF, renamed, nameless, deposit, unknown)
    reasons = {(row["product_id"], row["reason"]) for row in rejected(checked, REJECTED_PRODUCTS).collect()}
    assert reasons == {
        ("1", "repeated_product"),
        ("4", "no_name"),
        ("5", "non_product"),
        ("9", "non_product"),
        (None, "no_id"),
    }
    assert sorted(row["product_id"] for row in accepted(checked).collect()) == ["1", "2", "3"]


def test_an_item_says_what_sets_it_apart_and_its_query_says_the_same(spark: SparkSession) -> None:
    items = prepare.build_items(accepted(products(spark, *SHELF)))
    expected = [
        ("1", "POTATO CHIPS BAG SNACKS 11 OZ", "GROCERY > BAG SNACKS", "M544 National", "11 OZ"),
        ("2", "EGGS", "GROCERY > EGGS", "M69 Private", None),
        ("3", "STRAWBERRIES", "MISCELLANEOUS", "M70 National", None),
    ]
    schema = "item_id string, title string, google_product_category string, brand string, size string"
    assert_df_equality(items.orderBy("item_id"), spark.createDataFrame(expected, schema), ignore_nullable=True)
    query = prepare.build_queries(items).where("query_item_id = '1'").collect()
    assert [tuple(row) for row in query] == [
        ("item:1", "closeup", "POTATO CHIPS BAG SNACKS 11 OZ GROCERY > BAG SNACKS M544 National", "1")
    ]


def test_every_kind_of_purchase_goes_one_way(spark: SparkSession) -> None:
    cases = {
        purchase("a", "1"): "used",
        purchase("a", "2", sales_value=0.0, retail_disc=1.0): "used",
        purchase("a", "2", sales_value=3.0): "repeated_item_in_basket",
        purchase("a", "3", sales_value=0.0): "no_money",
        purchase("a", "3", quantity=0, sales_value=0.0): "quantity_not_positive",
        purchase("a", "9", quantity=10_004): "no_item",
        purchase("a", "10"): "unknown_product",
        purchase("a", "3", household_id=None): "incomplete",
        purchase("b", "1"): "lone_item_in_basket",
    }
    used, refused = split(spark, *cases)
    names = TRANSACTIONS.column_names
    found = {tuple(row[name] for name in names): "used" for row in used.collect()}
    found |= {tuple(row[name] for name in names): row["reason"] for row in refused.collect()}
    assert found == cases


def test_all_of_a_small_basket_lead_to_each_other_and_a_coupon_is_redeemed(spark: SparkSession) -> None:
    used, _ = split(spark, purchase("a", "1"), purchase("a", "2", coupon_disc=0.5), purchase("a", "3"))
    events = prepare.build_engagement_logs(used).collect()
    pairs = {("1", "2"), ("1", "3"), ("2", "1"), ("2", "3"), ("3", "1"), ("3", "2")}
    assert {(row["query_id"], row["item_id"]) for row in events if row["engagement"] == "checkout"} == {
        (f"item:{query}", item) for query, item in pairs
    }
    redeemed = [row for row in events if row["engagement"] == "redeem"]
    assert {(row["query_id"], row["item_id"]) for row in redeemed} == {("item:1", "2"), ("item:3", "2")}
    assert len(events) == len({row["event_id"] for row in events}) == 8
    assert {(row["event_ts"], row["user_id"]) for row in events} == {(AT, "7")}


def test_a_large_basket_gives_each_item_as_many_followers_whatever_the_order_of_rows(spark: SparkSession) -> None:
    shelf = [(f"{number}", *CHIPS[1:]) for number in range(9)]
    rows = [purchase("a", number) for number, *_ in shelf]
    logs = [
        prepare.build_engagement_logs(split(spark, *order, shelf=tuple(shelf))[0]).collect()
        for order in (rows, rows[::-1])
    ]
    assert sorted(row["event_id"] for row in logs[0]) == sorted(row["event_id"] for row in logs[1])
    for side in ("query_id", "item_id"):
        times = [row[side] for row in logs[0]]
        assert {times.count(value) for value in times} == {prepare.FOLLOWERS}
    assert all(row["query_id"] != f"item:{row['item_id']}" for row in logs[0])


def write(folder: Path, **columns: dict[str, Any]) -> None:
    """Instants as the package has them: INT96, which means UTC."""
    for name, values in columns.items():
        pq.write_table(pa.table(values), folder / f"{name}.parquet", use_deprecated_int96_timestamps=True)


def test_the_tables_are_written_and_every_row_is_accounted_for(
    spark: SparkSession, tmp_path: Path, make_settings: Callable[..., Settings]
) -> None:
    shelf = dict(zip(PRODUCTS.column_names, zip(*SHELF, strict=True), strict=True))
    ids = {name: [int(number) for number in shelf[name]] for name in ("product_id", "manufacturer_id")}
    rows = [purchase("31", "1"), purchase("31", "2"), purchase("31", "9"), purchase("32", "10")]
    bought = dict(zip(TRANSACTIONS.column_names, zip(*rows, strict=True), strict=True))
    numbers = {name: [int(i) for i in bought[name]] for name in ("household_id", "basket_id", "product_id")}
    write(tmp_path, products={**shelf, **ids}, transactions={**bought, **numbers})
    settings = make_settings()
    prepare.run(spark, settings, str(tmp_path))
    tables = {
        name: spark.read.format("delta").load(settings.table_uri(name)).collect()
        for name in ("items", "queries", "engagement_logs", "raw_rows_accounting")
    }
    assert sorted(row["item_id"] for row in tables["items"]) == ["1", "2", "3"]
    assert len(tables["queries"]) == 3
    assert {row["event_id"] for row in tables["engagement_logs"]} == {"31|1|2|checkout", "31|2|1|checkout"}
    assert {tuple(row) for row in tables["raw_rows_accounting"]} == {
        ("products", "used", 3),
        ("products", "non_product", 1),
        ("transactions", "used", 2),
        ("transactions", "no_item", 1),
        ("transactions", "unknown_product", 1),
    }


def test_what_is_not_there_is_named(
    spark: SparkSession, tmp_path: Path, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TableError, match=r"table products.* expected a Delta or Parquet table at .*products.parquet"):
        prepare.run(spark, make_settings(), str(tmp_path))
    monkeypatch.setattr(prepare, "PACKAGE", "no_such_package")
    with pytest.raises(SettingsError, match="run `make complete-journey`"):
        prepare.run(spark, make_settings(), None)


def test_the_settings_split_the_log_where_it_should_be_split() -> None:
    settings = load_settings(SETTINGS)
    assert [entry.task.name for entry in settings.tasks] == ["closeup_checkout", "closeup_redeem"]
    instants = (settings.dates.train_start, settings.dates.train_end, settings.dates.test_start, settings.dates.end)
    assert [f"{instant:%Y-%m-%d}" for instant in instants] == ["2017-01-01", "2017-11-26", "2017-12-03", "2018-01-02"]


@pytest.mark.timeout(900)
@pytest.mark.skipif(
    importlib.util.find_spec(prepare.PACKAGE) is None,
    reason=f"the package {prepare.PACKAGE} is not installed: make .venv/complete-journey",
)
def test_every_product_and_a_tenth_of_the_baskets_of_the_real_package_are_accounted_for(spark: SparkSession) -> None:
    folder = prepare.installed_folder()
    found_files = [find_input(str(folder / f"{table.name}.parquet"), table) for table in (PRODUCTS, TRANSACTIONS)]
    raw_products, raw_transactions = (read_input(spark, file) for file in found_files)
    shelf = checked_products(raw_products).persist()
    tenth = raw_transactions.where("basket_id like '%7'").persist()
    items, refused = accepted(shelf), rejected(shelf, REJECTED_PRODUCTS)
    rows_of = {
        "products": (items, refused),
        "transactions": split_transactions(checked_transactions(tenth, shelf)),
    }
    found = {(row[0], row[1]): row[2] for row in prepare.build_accounting(rows_of).collect()}
    assert {reason: count for (source, reason), count in found.items() if source == "products"} == {
        "used": 91_687,
        "no_name": 429,
        "non_product": 215,
    }
    of_tenth = {reason: count for (source, reason), count in found.items() if source == "transactions"}
    assert sum(of_tenth.values()) == tenth.count() == 146_144
    assert of_tenth == {
        "used": 141_237,
        "no_item": 2_017,
        "lone_item_in_basket": 1_964,
        "unknown_product": 504,
        "quantity_not_positive": 416,
        "no_money": 6,
    }
    shelf.unpersist()
    tenth.unpersist()
