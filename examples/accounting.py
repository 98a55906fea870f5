"""What became of every raw row of an example's data, printed and proven."""

from __future__ import annotations

from schemas.columns import Table
from schemas.errors import TableError


def print_accounting(table: Table, rows: str, counts: dict[str, int], total: int) -> None:
    """Print how many rows were used and rejected, by reason.

    Args:
        table: Where the rows come from.
        rows: What they are called.
        counts: `used` or reason -> rows.
        total: Rows that were read.

    Raises:
        TableError: the counts do not add up to the rows read.
    """
    accounted = sum(counts.values())
    rejects = sorted((item for item in counts.items() if item[0] != "used"), key=lambda item: (-item[1], item[0]))
    print(f"  what became of every {rows}:")
    for reason, count in [("used", counts.get("used", 0)), *rejects, ("total", accounted)]:
        print(f"    {reason:<26}{count:>9,}{count / total:>8.1%}", flush=True)
    if accounted != total:
        raise TableError(
            table.name,
            "(all)",
            expected=f"{total:,} rows accounted for",
            found=f"{accounted:,}",
            cure="This is a defect of the example: no input may cause it.",
        )
