"""What `doctor` finds, and the rows that it looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from schemas.input_tables import InputTable

Verdict = Literal["ok", "look", "fault"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at: ok; worth a look; or a fault, which would stop a run. The text says what to mend."""

    verdict: Verdict
    subject: str
    text: str


@dataclass(frozen=True)
class Sample:
    """Some rows of an input table, their texts as they are stored, and what the table consists of."""

    rows: pa.Table
    found: InputTable

    @property
    def is_whole(self) -> bool:
        """Whether these are all rows of the table."""
        return len(self.rows) == self.found.rows
