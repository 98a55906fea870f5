"""The paper's three surfaces over one index: closeup (an item or image that is viewed), search (a text), home (a user).

    surfaces = Surfaces.open(settings)
    found = surfaces.search("red lamp", k=10, where={"in_stock": [True]})
    found = surfaces.closeup(item_id="P201")
    found = surfaces.home([Engaged("P201", age_days=0.5), Engaged("P004", age_days=3)])
    found.hits, found.milliseconds, surfaces.why(found)

Queries go through the encoder and the adapter that the version's own queries went through; an index of another version
or space is refused when it is opened.

Source: ItemSage section 4 (closeup, search and home feed are served by the same embeddings).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.explain import Explainer, Explanation
from retrieval.filters import Where
from retrieval.home import Engaged, HomeSettings, search_home
from retrieval.index import Index, open_index
from retrieval.query_side import QueryParts, load_parts
from retrieval.titles import titles_of
from schemas.cells import to_matrix
from schemas.errors import InputError
from schemas.input_rows import input_rows
from schemas.input_tables import find_input
from schemas.published import Published, published_version
from schemas.settings import Settings
from schemas.storage import read_batches
from schemas.tables import EMBEDDING_DIM, MAX_TEXT_CHARACTERS, QUERIES, QUERY_EMBEDDINGS

SEARCH, CLOSEUP = "search", "closeup"
"""The query kinds of the paper's tasks; a shop that calls its own otherwise names them."""

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """One item that was found.

    Attributes:
        item_id: Which.
        score: Cosine with the query; of the home surface the soft maximum over the user's interests.
        because_of: The user's item that speaks for it most; empty on the other surfaces.
    """

    item_id: str
    score: float
    because_of: str = ""


@dataclass(frozen=True, eq=False)
class Found:
    """What a surface answers.

    Attributes:
        hits: The best first.
        queries: What was searched with: `because_of` -> a vector of unit length [256]; of one query under "".
        milliseconds: Encoding and searching; which query has a text or shows an item is looked up in tables, and does
            not count.
    """

    hits: tuple[Hit, ...]
    queries: Mapping[str, Vector]
    milliseconds: float


@dataclass(frozen=True, eq=False)
class Surfaces:
    """A published version, opened to be asked.

    Attributes:
        settings: Where the shop's tables lie.
        published: The version that the index holds.
        index: The index.
    """

    settings: Settings
    published: Published
    index: Index

    @staticmethod
    def open(settings: Settings) -> Surfaces:
        """The index of the settings, and the version of item_embeddings that it holds.

        Raises:
            InputError: there is no index, it is damaged, or its version is not, or is no longer, what it says.
        """
        index = open_index(settings.index_folder)
        try:
            published = published_version(settings.layout, index.manifest.version)
        except InputError as error:
            cure = "Export what is live: `itemsage export-index --settings FILE`."
            expected, found = "a version that the log of item_embeddings still has", f"version {index.manifest.version}"
            raise InputError(index.name, "version", expected=expected, found=found, cure=cure) from error
        if index.manifest.model_id != published.model_id:
            cure = "Export it again: `itemsage export-index --settings FILE --set index.rebuild=true`."
            expected, found = f"the model of version {published.version}, {published.model_id}", index.manifest.model_id
            raise InputError(index.name, "model_id", expected=expected, found=found, cure=cure)
        for kind, space in published.metrics.spaces.items():
            index.require_space(kind, space)
        return Surfaces(settings, published, index)

    @cached_property
    def parts(self) -> QueryParts:
        """The encoder and the adapter of the version's queries."""
        return load_parts(self.published)

    @cached_property
    def explainer(self) -> Explainer:
        """What says why an item is found."""
        return Explainer.load(self.published, self.settings.query_encoder.item_text)

    def search(self, text: str, k: int = 10, where: Where | None = None, kind: str = SEARCH) -> Found:
        """Items for a search text.

        A text that the shop's queries have is answered by the published vector of that query.

        Args:
            text: Any text.
            k: How many items.
            where: Column -> allowed values.
            kind: Which queries such texts are.

        Raises:
            InputError: no query has this text, and texts of this kind are encoded elsewhere; or no word of it is known.
        """
        text = text[:MAX_TEXT_CHARACTERS]
        if not text.strip():
            raise self._refusal(f"{kind} text", "a text", repr(text), "Say what is looked for.")
        known = self._known_text(text, kind)
        begun = time.perf_counter()
        return self._answer(self._encoded(text, kind) if known is None else known, k, where, begun=begun)

    def closeup(
        self, query_id: str = "", item_id: str = "", k: int = 10, where: Where | None = None, kind: str = CLOSEUP
    ) -> Found:
        """Items that go with a query of query_vectors, or with an item, which is not among them.

        Args:
            query_id: The query.
            item_id: The item in its place: the query of this kind that shows it, or else its own embedding.
            k: How many items.
            where: Column -> allowed values.
            kind: Which queries show items.

        Raises:
            InputError: there is no such query or item, or no such kind.
        """
        if kind != CLOSEUP:
            self._space(kind)
        if query_id:
            vector = next(iter(self.query_vectors([query_id]).values()), None)
            if vector is None:
                raise self._refusal(f"query {query_id}", "a query of query_vectors", "none", "Name one that is there.")
            return self._answer(vector, k, where)
        own, is_there = self.index.vectors_of([item_id])
        if not is_there[0]:
            raise self._refusal(f"item {item_id}", "an item of the index", "none", "Name an item_id of the catalog.")
        return self._answer(self.queries_showing([item_id], kind).get(item_id, own[0]), k, where, left_out=item_id)

    def closeup_of_vector(
        self, frozen: Vector, embedding_space: str, k: int = 10, where: Where | None = None, kind: str = CLOSEUP
    ) -> Found:
        """Items that go with a frozen vector, such as that of a picture.

        Args:
            frozen: As queries.query_embedding has it [numbers].
            embedding_space: The encoder that made it.
            k: How many items.
            where: Column -> allowed values.
            kind: Which queries such vectors are.

        Raises:
            InputError: it is of another space or length than queries of this kind are.
        """
        begun = time.perf_counter()
        projection = self.parts.projections.get(kind)
        lengths = {self._space(kind): EMBEDDING_DIM}
        if projection is not None:
            lengths[projection.source_space] = projection.length
        if lengths.get(embedding_space) != len(frozen) or not np.isfinite(frozen).all() or not np.any(frozen):
            wanted = " or ".join(f"{length} numbers of {space}" for space, length in lengths.items())
            found = f"{len(frozen)} numbers of {embedding_space}"
            raise self._refusal(
                f"{kind} vector", f"{wanted}, finite and not all zero", found, "Encode it as they were."
            )
        row = np.asarray(frozen, np.float32)[None]
        is_projected = projection is not None and embedding_space == projection.source_space
        row = projection.apply(row).astype(np.float32) if projection is not None and is_projected else row
        return self._answer(self._adapted(row, kind), k, where, begun=begun)

    def home(
        self,
        engaged: Sequence[Engaged],
        k: int = 10,
        where: Where | None = None,
        how: HomeSettings | None = None,
    ) -> Found:
        """Items for a user's home page; none where no item of the user is in the index.

        Args:
            engaged: What the user took, and how long ago.
            k: How many items.
            where: Column -> allowed values.
            how: See retrieval.home; None = what was chosen there.

        Raises:
            InputError: an age is no number.
        """
        if unknown := [one.item_id for one in engaged if math.isnan(one.age_days)]:
            raise self._refusal(f"age of {unknown[0]}", "days since the user took it", "no number", "Give 0 for now.")
        ids = list(dict.fromkeys(one.item_id for one in engaged))
        vectors, is_there = self.index.vectors_of(ids)
        known = {ids[row]: vectors[row] for row in np.flatnonzero(is_there)}
        begun = time.perf_counter()
        answers = search_home(self.index, engaged, known, self._bounded(k), how, where=where)
        spent = (time.perf_counter() - begun) * 1e3
        hits = tuple(Hit(one.item_id, one.score, one.because_of) for one in answers)
        return Found(hits, {one.because_of: known[one.because_of] for one in answers}, spent)

    def why(self, found: Found) -> dict[str, Explanation]:
        """item_id -> what its score with the query consists of; see retrieval.explain.

        Raises:
            InputError: as of `Explainer.explain`.
        """
        explained: dict[str, Explanation] = {}
        for because_of, query in found.queries.items():
            ids = [hit.item_id for hit in found.hits if hit.because_of == because_of]
            explained |= dict(zip(ids, self.explainer.explain(ids, query), strict=True))
        return explained

    def titles(self, item_ids: Iterable[str]) -> dict[str, str]:
        """Titles of some items; see `titles_of`."""
        return titles_of(self.settings, item_ids)

    def query_vectors(self, query_ids: Sequence[str]) -> dict[str, Vector]:
        """query_id -> the published vector to search with, of those that are there."""
        wanted = pa.array(query_ids, pa.string())
        found: dict[str, Vector] = {}
        for batch in self.published.queries(["query_id", "query_vector"]):
            rows = batch.filter(pc.is_in(batch.column("query_id"), wanted))
            if len(rows):
                ids = rows.column("query_id").to_pylist()
                found |= dict(zip(ids, to_matrix(rows.column("query_vector")), strict=True))
        return found

    def queries_showing(self, item_ids: Sequence[str], kind: str = CLOSEUP) -> dict[str, Vector]:
        """item_id -> the published vector of the query that shows it, the smallest query_id of several."""
        uri = self.published.warehouse.table(QUERY_EMBEDDINGS.name)
        version = self.published.note["made_of"][QUERY_EMBEDDINGS.name]
        wanted, query_of = pa.array(item_ids, pa.string()), dict[str, str]()
        for batch in read_batches(uri, version, ["query_id", "query_kind", "query_item_id"]):
            is_asked = pc.and_(
                pc.is_in(batch.column("query_item_id"), wanted), pc.equal(batch.column("query_kind"), kind)
            )
            for row in batch.filter(is_asked).to_pylist():
                item, query = row["query_item_id"], row["query_id"]
                query_of[item] = min(query, query_of.get(item, query))
        vectors = self.query_vectors(list(query_of.values()))
        return {item: vectors[query] for item, query in query_of.items() if query in vectors}

    def _known_text(self, text: str, kind: str) -> Vector | None:
        """The vector of the shop's query with this text, the smallest query_id of several; None where none has it."""
        table = find_input(self.settings.table_uri(QUERIES.name), QUERIES)
        ids: list[str] = []
        for batch in input_rows(table, ("query_id", "query_kind", "text")):
            is_asked = pc.and_(pc.equal(batch.column("text"), text), pc.equal(batch.column("query_kind"), kind))
            ids += batch.filter(is_asked).column("query_id").to_pylist()
        vectors = self.query_vectors(ids)
        return vectors[min(vectors)] if vectors else None

    def _encoded(self, text: str, kind: str) -> Vector:
        space, encoder = self._space(kind), self.parts.encoder
        if encoder is None or encoder.name != space:
            cure = (
                "Encode it there, and ask by the vector (`closeup_of_vector`, or --vector FILE --space "
                f"{space} --kind {kind}); or let embed_queries encode all texts."
            )
            found = "no query of the shop has this text"
            raise self._refusal(f"{kind} text", f"queries of {space}, whose encoder is not here", found, cure)
        frozen = encoder.encode([text])
        if not frozen.any():
            raise self._refusal(
                f"{kind} text", "a text with a word that the encoder knows", repr(text), "Ask otherwise."
            )
        return self._adapted(frozen, kind)

    def _adapted(self, frozen: Vector, kind: str) -> Vector:
        row = frozen / np.linalg.norm(frozen, axis=1, keepdims=True)
        adapted: Vector = self.parts.adapted(row.astype(np.float32), kind)[0]
        return adapted

    def _space(self, kind: str) -> str:
        spaces = self.published.metrics.spaces
        if kind not in spaces:
            raise self._refusal(
                "query kind", f"one of {', '.join(sorted(spaces))}", kind, "Name the kind of the query."
            )
        return spaces[kind]

    def _answer(
        self, query: Vector, k: int, where: Where | None, left_out: str = "", begun: float | None = None
    ) -> Found:
        begun = time.perf_counter() if begun is None else begun
        hits = self.index.search(query[None], self._bounded(k) + bool(left_out), where)
        pairs = zip(hits.item_ids[0].tolist(), hits.scores[0].tolist(), strict=True)
        found = [Hit(item, score) for item, score in pairs if item is not None and item != left_out][:k]
        return Found(tuple(found), {"": query}, (time.perf_counter() - begun) * 1e3)

    def _bounded(self, k: int) -> int:
        """At most as many as there are: an answer has no more, however many are asked for."""
        if k < 1:
            raise self._refusal("k", "at least 1", str(k), "Ask for one item at least.")
        return min(k, len(self.index))

    def _refusal(self, part: str, expected: str, found: str, cure: str) -> InputError:
        return InputError(self.index.name, part, expected=expected, found=found, cure=cure)
