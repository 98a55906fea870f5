"""What became of every raw row of an example's data, printed and proven."""

from __future__ import annotations

from schemas.columns import Table
from schemas.errors import TableError


def print_accounting(
    table: Table, rows: str, counts: dict[str, int], total: int, kept: tuple[str, ...] = ("used",)
) -> None:
    """Print how many rows were kept and rejected, by reason.

    Args:
        table: Where the rows come from.
        rows: What they are called.
        counts: One of `kept`, or a reason -> rows.
        total: Rows that were read.
        kept: What rows that are no rejects were taken for, in the order to print.

    Raises:
        TableError: the counts do not add up to the rows read.
    """
    accounted = sum(counts.values())
    rejects = sorted((item for item in counts.items() if item[0] not in kept), key=lambda item: (-item[1], item[0]))
    print(f"  what became of every {rows}:")
    for reason, count in [*((name, counts.get(name, 0)) for name in kept), *rejects, ("total", accounted)]:
        print(f"    {reason:<26}{count:>9,}{count / total:>8.1%}", flush=True)
    if accounted != total:
        raise TableError(
            table.name,
            "(all)",
            expected=f"{total:,} rows accounted for",
            found=f"{accounted:,}",
            cure="This is a defect of the example: no input may cause it.",
        )
