"""Vectors that are scored and not live yet: their files lie beside the live ones, and `_runs/candidate` names them.

They can be evaluated where they lie; one command makes them live by the commit that would have made them so at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from schemas.commits import Note, Staged
from schemas.errors import InputError
from schemas.feed import ALL, begin_version
from schemas.metrics import ScoreMetrics
from schemas.published import PUBLISHED, Published, keep_encoder, keep_makers, live
from schemas.records import TableVersion, read_record, write_record
from schemas.settings import Settings
from schemas.short_vectors import short_vector, short_vectors_table
from schemas.stages import SCORE_CATALOG
from schemas.storage import file_system, is_file, read_bytes, write_bytes
from schemas.tables import ITEM_EMBEDDINGS, ITEM_SHORT_VECTORS, QUERY_VECTORS, filtered
from schemas.warehouse import Warehouse

CANDIDATE_TABLES = (ITEM_EMBEDDINGS.name, QUERY_VECTORS.name, ITEM_SHORT_VECTORS.name)


@dataclass(frozen=True)
class Candidate:
    """Staged items and queries of one model.

    Attributes:
        items: Rows of ITEM_EMBEDDINGS.
        answers: Rows of QUERY_VECTORS.
        note: What the commits will say of the run.
        metrics: What score_catalog counted.
        rows: Rows of item_embeddings then, where the staged items replace some of them; None = they replace all.
        short: Rows of ITEM_SHORT_VECTORS, in the forms that the metrics name; None where there are none.
    """

    items: Staged
    answers: Staged
    note: dict[str, Any]
    metrics: ScoreMetrics
    rows: int | None = None
    short: Staged | None = None

    def make_live(
        self,
        warehouse: Warehouse,
        merge: Callable[[Note], int] | None = None,
        merge_short: Callable[[Note], int] | None = None,
    ) -> tuple[TableVersion, ...]:
        """Commit queries and short vectors, then the items, whose commit is the pointer to all; returns all.

        Args:
            warehouse: Where they lie.
            merge: Commits the items in another way than by replacing all rows, and returns the version.
            merge_short: The same of the short vectors.

        Raises:
            OvertakenError: another run has committed to one of the tables since they were staged.
        """
        _keep_what_belongs_to(warehouse, self.metrics)
        pointer, *others = self.outputs
        versions = {QUERY_VECTORS.name: self.answers.commit(self.note)}
        if self.short is not None:
            versions[ITEM_SHORT_VECTORS.name] = merge_short(self.note) if merge_short else self.short.commit(self.note)
        belong = {one.table: {"version": versions[one.table], "rows": one.rows} for one in others}
        note = {**self.note, PUBLISHED: {"metrics": asdict(self.metrics), "rows": pointer.rows, **belong}}
        items = merge(note) if merge else self.items.commit(note, before=lambda version: announce(warehouse, version))
        return replace(pointer, version=items), *(replace(one, version=versions[one.table]) for one in others)

    @property
    def outputs(self) -> tuple[TableVersion, ...]:
        """Its tables, of no version yet."""
        rows = self.items.rows if self.rows is None else self.rows
        counted = [(one, one.rows if one is self.answers else rows) for one in self.parts]
        return tuple(TableVersion(one.table.name, one.uri, None, count) for one, count in counted)

    @property
    def parts(self) -> tuple[Staged, ...]:
        """What is staged, a table each."""
        return tuple(one for one in (self.items, self.answers, self.short) if one is not None)

    def staged(self, table: str) -> Staged:
        """What is staged for one of its tables."""
        return next(one for one in self.parts if one.table.name == table)


def announce(warehouse: Warehouse, version: int) -> None:
    """Say in the change feed that a version is to be read whole."""
    begin_version(warehouse, version, ALL)


def _keep_what_belongs_to(warehouse: Warehouse, metrics: ScoreMetrics) -> None:
    """Keep beside the model what a rollback to it needs, and whoever answers its queries."""
    keep_makers(warehouse, metrics.model_id)
    keep_encoder(warehouse, metrics.model_id, metrics.spaces.values())


def keep_candidate(warehouse: Warehouse, candidate: Candidate) -> None:
    """Name the files, in the place of those of a candidate before, which nothing names then."""
    _keep_what_belongs_to(warehouse, candidate.metrics)
    staged = {one.table.name: {"files": one.files, "base": one.base} for one in candidate.parts}
    further = candidate.items.table.columns[len(ITEM_EMBEDDINGS.columns) :]
    filters = {column.name: column.kind for column in further}
    values = {"tables": staged, "note": candidate.note, "metrics": asdict(candidate.metrics), "filters": filters}
    write_bytes(warehouse.candidate, (json.dumps(values, indent=2) + "\n").encode())


def read_candidate(warehouse: Warehouse) -> Candidate:
    """The candidate.

    Raises:
        InputError: there is none, or the file is damaged.
    """
    try:
        values = json.loads(read_bytes(warehouse.candidate))
        metrics = TypeAdapter(ScoreMetrics).validate_python(values["metrics"])
        items_table = filtered(ITEM_EMBEDDINGS, values.get("filters", {}))
        forms = map(short_vector, metrics.short.forms if metrics.short else ())
        parts = {
            table.name: Staged(table, warehouse.table(table.name), values["tables"][table.name]["files"],
                               values["tables"][table.name]["base"])
            for table in (items_table, QUERY_VECTORS, short_vectors_table(forms))
            if table.name != ITEM_SHORT_VECTORS.name or metrics.short
        }  # fmt: skip
        items, answers = parts[ITEM_EMBEDDINGS.name], parts[QUERY_VECTORS.name]
        return Candidate(items, answers, values["note"], metrics, short=parts.get(ITEM_SHORT_VECTORS.name))
    except FileNotFoundError as error:
        raise _refusal(warehouse, "none") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _refusal(warehouse, f"a damaged file: {' '.join(str(error).split())[:200]}") from error


def remove_candidate(warehouse: Warehouse) -> None:
    """Forget the candidate, if there is one; its files, if they are not live, are litter."""
    if is_file(warehouse.candidate):
        system, path = file_system(warehouse.candidate)
        system.delete_file(path)


def _refusal(warehouse: Warehouse, found: str) -> InputError:
    return InputError(
        "candidate",
        warehouse.candidate,
        expected="scored vectors that are not live yet",
        found=found,
        cure="Score the catalog with `--set score.publish=candidate` first.",
    )


def publish_candidate(settings: Settings) -> Published:
    """Make the candidate live; called under a lease. Ended half-way, it goes on where it was.

    Raises:
        InputError: there is no candidate.
        OvertakenError: as of `Candidate.make_live`.
    """
    warehouse = settings.layout
    candidate = read_candidate(warehouse)
    outputs = candidate.make_live(warehouse)
    write_record(warehouse, replace(read_record(warehouse, SCORE_CATALOG), outputs=outputs))
    remove_candidate(warehouse)
    found = live(warehouse)
    assert found is not None
    return found
