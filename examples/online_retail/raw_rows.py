"""The raw invoice lines of UCI "Online Retail" (doi:10.1057/dbm.2012.17), and what can be wrong with one.

The three tables declared here belong to this example alone; the pipeline's own are in schemas/tables.py.
"""

from __future__ import annotations

import tarfile

import pyarrow as pa
from pyarrow import csv
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from jobs.transforms.quarantine import Check, accepted, rejected, with_reject
from schemas.columns import Column as Declared
from schemas.columns import Table
from schemas.errors import TableError
from schemas.tables import REJECTED_ITEMS

CSV_COLUMNS = {
    "InvoiceNo": "invoice_no",
    "StockCode": "stock_code",
    "Description": "description",
    "Quantity": "quantity",
    "InvoiceDate": "invoice_date",
    "UnitPrice": "unit_price",
    "CustomerID": "customer_id",
    "Country": "country",
}
"""Columns of the CSV files -> our names."""

BASKET_CUT = 20
"""Most items of one basket that are used: pairs grow with the square, and the largest basket has 1,110 items."""

RAW_ROWS = Table(
    "raw_rows",
    "one invoice line as the archive has it",
    (
        Declared("source_file", "string", "the daily file"),
        Declared("row_number", "int64", "row of the file, from 1, header not counted"),
        *(Declared(name, "string", f"{original}, as written", nullable=True) for original, name in CSV_COLUMNS.items()),
    ),
    key=("source_file", "row_number"),
)

REJECTED_RAW_ROWS = Table(
    "rejected_raw_rows",
    "one invoice line that gave no engagement, and why",
    (*RAW_ROWS.columns, *REJECTED_ITEMS.columns[1:]),
    key=RAW_ROWS.key,
)

RAW_ROWS_ACCOUNTING = Table(
    "raw_rows_accounting",
    "one fate of invoice lines",
    (
        Declared("reason", "string", "used (a checkout), returned (a return), or the reason of rejected_raw_rows"),
        Declared("row_count", "int64", "invoice lines; the counts of all rows add up to the archive's lines"),
    ),
    key=("reason",),
)


def read_archive(path: str) -> pa.Table:
    """Every CSV file of the archive as `raw_rows`, read in place: nothing is unpacked.

    Raises:
        TableError: there is no such archive, or a file of it has other columns.
    """
    days = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".csv"):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    days.append(_read_day(member.name.rpartition("/")[2], stream.read()))
    except (FileNotFoundError, tarfile.ReadError) as error:
        raise _no_archive(path, str(error)) from error
    if not days:
        raise _no_archive(path, "no CSV file in it")
    return pa.concat_tables(days)


def _read_day(name: str, content: bytes) -> pa.Table:
    as_text = csv.ConvertOptions(column_types=dict.fromkeys(CSV_COLUMNS, pa.string()), strings_can_be_null=False)
    day = csv.read_csv(pa.BufferReader(content), convert_options=as_text)
    if day.column_names != list(CSV_COLUMNS):
        raise TableError(
            RAW_ROWS.name,
            "(header)",
            expected=", ".join(CSV_COLUMNS),
            found=f"{', '.join(day.column_names)} in {name}",
            cure="Use the daily files of the data set as they are.",
        )
    rows = day.rename_columns(list(CSV_COLUMNS.values()))
    row_numbers = pa.array(range(1, rows.num_rows + 1), pa.int64())
    return rows.add_column(0, "source_file", pa.array([name] * rows.num_rows)).add_column(1, "row_number", row_numbers)


def _no_archive(path: str, found: str) -> TableError:
    return TableError(
        RAW_ROWS.name,
        "(all)",
        expected=f"a tar archive of daily CSV files at {path}",
        found=found,
        cure="Point DATA at by-day.tar.xz of the Online Retail data set.",
    )


# ---------------------------------------------------------------- which lines can be used


def checked_lines(raw_rows: DataFrame) -> DataFrame:
    """Add item_id, title, event_ts (UTC), user_id, and `reject` where a row sells no product."""
    return with_reject(_with_parsed_columns(raw_rows), RAW_ROWS, _line_checks())


def split_rows(lines: DataFrame) -> tuple[DataFrame, DataFrame]:
    """Send every row of `checked_lines` exactly one way: used, or rejected for one reason.

    Returns:
        used: the purchases that stand in a basket with another one; one row per basket (invoice_no) and item_id.
        rejected: rows of `REJECTED_RAW_ROWS`.
    """
    by_file_order = Window.partitionBy("invoice_no", "item_id").orderBy(*RAW_ROWS.key)
    purchases = accepted(lines).withColumn("copy", F.row_number().over(by_file_order))
    numbered = with_reject(purchases, RAW_ROWS, _repeat_checks())
    baskets = with_reject(_with_place_in_basket(accepted(numbered)), RAW_ROWS, _basket_checks())
    refused = [rejected(rows, REJECTED_RAW_ROWS) for rows in (lines, numbered, baskets)]
    return accepted(baskets), refused[0].unionByName(refused[1]).unionByName(refused[2])


def _with_parsed_columns(raw_rows: DataFrame) -> DataFrame:
    local_time = F.try_to_timestamp("invoice_date", F.lit("yyyy-MM-dd HH:mm:ss"))
    customer = F.regexp_replace(F.trim("customer_id"), r"\.0$", "")
    same_content = Window.partitionBy(*CSV_COLUMNS.values()).orderBy(*RAW_ROWS.key)
    return raw_rows.withColumns(
        {
            "item_id": F.upper(F.trim("stock_code")),
            "title": F.trim(F.regexp_replace("description", r"\s+", " ")),
            "event_ts": F.to_utc_timestamp(local_time, "Europe/London"),
            "user_id": F.when(customer != "", customer),
            "units": F.col("quantity").try_cast("int"),
            "price": F.col("unit_price").try_cast("double"),
            "same_row": F.row_number().over(same_content),
        }
    )


def _with_place_in_basket(purchases: DataFrame) -> DataFrame:
    """Order each basket by hash, so that a cut neither follows the stock codes nor depends on the reading order."""
    basket = Window.partitionBy("invoice_no")
    shuffled = basket.orderBy(F.md5(F.concat_ws("|", "invoice_no", "item_id")), "item_id")
    return purchases.withColumns(
        {
            "place": F.row_number().over(shuffled),
            "basket_size": F.count("*").over(basket),
            # An invoice is typed over several minutes; its basket is one event.
            "event_ts": F.min("event_ts").over(basket),
        }
    )


def _line_checks() -> list[Check]:
    is_unreadable = F.col("event_ts").isNull() | F.col("units").isNull() | F.col("price").isNull()
    # Fixed by the data: products have five digits, then letters; products are named in capitals.
    is_product = F.col("item_id").rlike(r"^\d{5}[A-Z]*$")
    is_named = F.col("title").rlike("[A-Z]{2}")
    none = "None needed: not a sale of a product."
    return [
        Check("unreadable", is_unreadable, "invoice_date", "date, quantity, price", "Correct it."),
        Check("cancellation", F.col("invoice_no").startswith("C"), "invoice_no", "an invoice, or a basket to cancel",
              "None needed: no earlier basket of the customer has it; the others are returns, see returns.py."),
        Check("non_product_code", ~is_product, "stock_code", "five digits, then letters", none),
        Check("no_description", F.col("title") == "", "description", "a description", none),
        Check("warehouse_note", ~is_named, "description", "a product's name, in capitals", none),
        Check("quantity_not_positive", F.col("units") <= 0, "quantity", "1 or more", none),
        Check("price_not_positive", F.col("price") <= 0, "unit_price", "more than 0", none),
        Check("duplicate_row", F.col("same_row") > 1, "(all)", "each line once", "None needed: the first is used."),
    ]  # fmt: skip


def _repeat_checks() -> list[Check]:
    cure = "None needed: the first line of the item is used."
    return [Check("repeated_item_in_basket", F.col("copy") > 1, "stock_code", "one line per basket and item", cure)]


def _basket_checks() -> list[Check]:
    is_lone = F.col("basket_size") == 1
    beyond = F.col("place") > BASKET_CUT
    return [
        Check("lone_item_in_basket", is_lone, "invoice_no", "two items or more", "None needed: no pair."),
        Check("beyond_basket_cut", beyond, "invoice_no", f"at most {BASKET_CUT} items", "Raise BASKET_CUT."),
    ]
