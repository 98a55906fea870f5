"""The products and purchases of 84.51 degrees' "The Complete Journey", and what can be wrong with a row.

What is wrong with them, of 92,331 products: 215 are none (petrol, gift cards, bottle deposits, coupons, the shop's own
supplies), 429 have neither a type nor a category. Of the rest 99 have no type and 109 no category, which will do, a
third has no size, and 23,646 nobody has bought. They have no names: 32,026 descriptions tell 91,687 products apart, and
up to 912 share one; types are abbreviated, cut at 30 characters and misspelled.

Of 1,469,307 purchases: 4,836 of 17 products that no row describes, most of them coupons without quantity or sales;
19,831 of the products left out above, petrol first, whose quantity is in thousandths of a gallon; 3,929 of quantity 0;
87 without money or discount. Another 2,128 that brought the shop nothing had a discount: gifts, which are used. 19,819
stand alone in their basket.

Times are UTC: by the calendar of New York every one of the 2,102 coupon redemptions meets a household that bought
something on that day, by UTC 233 do not. `coupon_redemptions` itself is not read: it names a coupon, and a coupon is
for up to 14,477 products. 263 of them find no product of theirs in the household's purchases of the day, and of the
products that the others find, 3 in 10 have a discount. `coupon_disc` says of each purchase whether a coupon was used.
`promotions` (20,940,529 rows: a product on display or in the mailer, by store and week) would tell which products were
seen and not bought; nothing reads it.

The tables declared here belong to this example alone; the pipeline's own are in schemas/tables.py.
"""

from __future__ import annotations

from functools import reduce
from operator import or_

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.transforms.quarantine import Check, accepted, is_blank, rejected, with_reject
from schemas.columns import Column as Declared
from schemas.columns import Table
from schemas.tables import REJECTED_ITEMS

PRODUCTS = Table(
    "products",
    "one product of the file products.parquet",
    (
        Declared("product_id", "string", "the shop's number of the product", nullable=True),
        Declared("manufacturer_id", "string", "a number that stands for the manufacturer's name", nullable=True),
        Declared("department", "string", "such as GROCERY", nullable=True),
        Declared("brand", "string", "National, or Private: the shop's own", nullable=True),
        Declared("product_category", "string", "such as BAG SNACKS", nullable=True),
        Declared("product_type", "string", "such as POTATO CHIPS; cut at 30 characters at its source", nullable=True),
        Declared("package_size", "string", "such as 12 OZ", nullable=True),
    ),
    key=("product_id",),
)

TRANSACTIONS = Table(
    "transactions",
    "one purchase of one product in one basket, a row of the file transactions.parquet",
    (
        Declared("household_id", "string", "who bought", nullable=True),
        Declared("basket_id", "string", "one visit to the till", nullable=True),
        Declared("product_id", "string", "what was bought", nullable=True),
        Declared("quantity", "int64", "pieces, or thousandths of a gallon of petrol", nullable=True),
        Declared("sales_value", "float64", "dollars that the shop received", nullable=True),
        Declared("retail_disc", "float64", "dollars off by loyalty card", nullable=True),
        Declared("coupon_disc", "float64", "dollars off by a manufacturer's coupon", nullable=True),
        Declared("coupon_match_disc", "float64", "dollars that the shop adds to that coupon", nullable=True),
        Declared("transaction_timestamp", "timestamp", "when, UTC: the tills are five hours behind", nullable=True),
    ),
    key=("basket_id", "product_id"),
)


def _rejects_of(table: Table) -> Table:
    columns = (*table.columns, *REJECTED_ITEMS.columns[1:])
    return Table(f"rejected_{table.name}", f"one row of {table.name} that is not used, and why", columns, table.key)


REJECTED_PRODUCTS, REJECTED_TRANSACTIONS = _rejects_of(PRODUCTS), _rejects_of(TRANSACTIONS)

RAW_ROWS_ACCOUNTING = Table(
    "raw_rows_accounting",
    "one fate of the rows of one file",
    (
        Declared("source_table", "string", "products or transactions"),
        Declared("reason", "string", "used, or the reason of the table's rejects"),
        Declared("row_count", "int64", "rows; the counts of all reasons add up to the rows of the file"),
    ),
    key=("source_table", "reason"),
)

NON_PRODUCT_DEPARTMENTS = ("COUPON", "FUEL", "CHARITABLE CONT")
NON_PRODUCT_CATEGORIES = (
    "BOTTLE DEPOSITS",
    "COUPON",
    "COUPON/MISC ITEMS",
    "COUPONS/STORE & MFG",
    "DELI SUPPLIES",
    "FUEL",
    "MEAT SUPPLIES",
    "PROD SUPPLIES",
    "TICKETS",
)
"""What passes the till and is no product of a shelf: petrol, gift cards, deposits, the shop's own supplies."""

_NO_NEED = "None needed: not a purchase of a product."

# ---------------------------------------------------------------- products


def checked_products(products: DataFrame) -> DataFrame:
    """Add `title`, and `reject` where a row is no product that a customer could look for."""
    repeats = Window.partitionBy("product_id").orderBy(*PRODUCTS.column_names)
    numbered = products.withColumns({"title": _title(), "copy": F.row_number().over(repeats)})
    is_other = F.col("department").isin(*NON_PRODUCT_DEPARTMENTS)
    is_other |= F.col("product_category").isin(*NON_PRODUCT_CATEGORIES)
    is_nameless = is_blank("product_type") & is_blank("product_category")
    checks = [
        Check("no_id", is_blank("product_id"), "product_id", "a number", "Give it one."),
        Check("repeated_product", F.col("copy") > 1, "product_id", "one row per product", "None needed."),
        Check("non_product", is_other, "product_category", "what stands on a shelf", _NO_NEED),
        Check("no_name", is_nameless, "product_type", "a type or a category", "Name it."),
    ]
    return with_reject(numbered, PRODUCTS, checks)


def _title() -> Column:
    """Type, category unless it says the same, and size: "POTATO CHIPS BAG SNACKS 12 OZ"."""
    category = F.when(~F.col("product_category").eqNullSafe(F.col("product_type")), F.col("product_category"))
    return F.concat_ws(" ", "product_type", category, "package_size")


# ---------------------------------------------------------------- purchases


def checked_transactions(transactions: DataFrame, products: DataFrame) -> DataFrame:
    """Add `reject` where a row is no purchase of an item.

    Args:
        transactions: Rows of `TRANSACTIONS`.
        products: The rows of `checked_products`; of each product_id the first takes part.
    """
    known = products.where("copy = 1").select("product_id", F.col("reject").isNull().alias("is_item"))
    rows = transactions.join(known, on="product_id", how="left")
    needed = [column.name for column in TRANSACTIONS.columns]
    is_incomplete = reduce(or_, [F.col(name).isNull() for name in needed])
    discounts = F.col("retail_disc") + F.col("coupon_disc") + F.col("coupon_match_disc")
    # With a discount it is a gift: two for the price of one. Somebody has taken it home.
    is_unpaid = (F.col("sales_value") <= 0) & (discounts <= 0)
    checks = [
        Check("incomplete", is_incomplete, "(all)", "a value in every column", "Fill it."),
        Check("unknown_product", F.col("is_item").isNull(), "product_id", "a row of products", "Add the product."),
        Check("no_item", ~F.col("is_item"), "product_id", "a product that is used", _NO_NEED),
        Check("quantity_not_positive", F.col("quantity") <= 0, "quantity", "1 or more", _NO_NEED),
        Check("no_money", is_unpaid, "sales_value", "more than 0, or a discount", _NO_NEED),
    ]
    return with_reject(rows, TRANSACTIONS, checks)


def split_transactions(checked: DataFrame) -> tuple[DataFrame, DataFrame]:
    """Send every row of `checked_transactions` exactly one way: used, or rejected for one reason.

    Returns:
        used: the purchases that stand in a basket with another one, with `place` (from 1, by hash, so that it neither
            follows the product numbers nor depends on the reading order) and `basket_size`.
        rejected: rows of `REJECTED_TRANSACTIONS`.
    """
    repeats = Window.partitionBy("basket_id", "product_id").orderBy(*TRANSACTIONS.column_names)
    is_repeat = Check("repeated_item_in_basket", F.col("copy") > 1, "product_id", "one row per basket and product",
                      "None needed: the first is used.")  # fmt: skip
    purchases = accepted(checked).withColumn("copy", F.row_number().over(repeats))
    numbered = with_reject(purchases, TRANSACTIONS, [is_repeat])
    basket = Window.partitionBy("basket_id")
    shuffled = basket.orderBy(F.md5(F.concat_ws("|", "basket_id", "product_id")), "product_id")
    placed = accepted(numbered).withColumns(
        {"place": F.row_number().over(shuffled), "basket_size": F.count("*").over(basket)}
    )
    is_lone = F.col("basket_size") == 1
    lone = Check("lone_item_in_basket", is_lone, "basket_id", "two items or more", "None needed: no pair.")
    baskets = with_reject(placed, TRANSACTIONS, [lone])
    refused = [rejected(rows, REJECTED_TRANSACTIONS) for rows in (checked, numbered, baskets)]
    return accepted(baskets), reduce(DataFrame.unionByName, refused)
