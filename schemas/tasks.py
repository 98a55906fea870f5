"""Tasks: a task is one query kind and one engagement, and has one training table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Task:
    """One (query kind, engagement) pair, such as closeup queries and clicks.

    Source: ItemSage section 3 (two query modalities by four engagements).
    """

    query_kind: str
    engagement: str

    @property
    def name(self) -> str:
        """`{query kind}_{engagement}`, for example `closeup_add_to_cart`."""
        return f"{self.query_kind}_{self.engagement}"

    @property
    def training_table(self) -> str:
        """Name of the task's training table."""
        return f"training_{self.name}"

    @property
    def validation_table(self) -> str:
        """Name of the task's table of validation pairs."""
        return f"validation_{self.name}"

    @property
    def held_out_table(self) -> str:
        """Name of the task's table of held-out pairs."""
        return f"held_out_{self.name}"


PAPER_QUERY_KINDS = ("closeup", "search")
PAPER_ENGAGEMENTS = ("click", "save", "add_to_cart", "checkout")
PAPER_TASKS = tuple(Task(kind, engagement) for kind in PAPER_QUERY_KINDS for engagement in PAPER_ENGAGEMENTS)
