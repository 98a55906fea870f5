"""Every table of the pipeline, one constant each. All lie at `<warehouse>/<table name>`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from schemas.columns import Column, Kind, Table
from schemas.elements import ELEMENT_COLUMNS, FROZEN_TEXT
from schemas.tasks import Task

EMBEDDING_DIM = 256
"""Length of every query and item embedding that the pipeline publishes or trains against (the paper's 256)."""

MAX_IMAGES = 20
"""Most images of one item that enter the model (the paper's 20)."""

MAX_ID_BYTES = 512
"""Most bytes of an id or a name in an input, in UTF-8; a row with a longer one is rejected as long_id."""

MAX_TEXT_CHARACTERS = 16_384
"""Characters of one text that are read, of an item's text feature or of a query: a cell of 50 MB costs no memory."""

TEXT_FEATURES: dict[str, bool] = {
    "title": False,
    "description": False,
    "merchant_domain": False,
    "product_links": True,
    "google_product_category": False,
    "product_types": True,
    "brand": False,
    "colors": True,
    "materials": True,
    "patterns": True,
    "size": False,
    "size_type": False,
}
"""The paper's twelve text features in sequence order; True where an item may have several values."""

_ID = "any characters, compared byte for byte, at most 512 bytes"
_ITEM_ID = Column("item_id", "string", f"the shop's own id of the item: {_ID}", max_bytes=MAX_ID_BYTES)
_QUERY_ID = Column(
    "query_id", "string", f"id of the query, as the engagement logs use it: {_ID}", max_bytes=MAX_ID_BYTES
)
_ITEM_KEY = Column("item_key", "int64", "64-bit hash of item_id: the identity used for counts and masks")
_EMBEDDING = (EMBEDDING_DIM,)
FEATURES_HASH, ROW_CHECKSUM = "features_hash", "row_checksum"
_CHECKED_ITEM = ("item_id", "item_key")
_CHECKED_VALIDATION = ("query_key", "item_key", "query_item_key", "pair_weight", "query_embedding")
_CHECKED_PAIR = (*_CHECKED_VALIDATION, "fit_weight", "negative_item_key", "negative_weight")


def _checksum(columns: tuple[str, ...]) -> Column:
    return Column(ROW_CHECKSUM, "int64", f"CRC-32 of {', '.join(columns)}; see schemas/checksums.py")


_REJECT_COLUMNS = (
    Column("reason", "string", "short machine-readable cause, such as null_id"),
    Column("source_table", "string", "the table the row came from"),
    Column("source_column", "string", "the column at fault"),
    Column("expected", "string", "what the column should have held"),
    Column("cure", "string", "what to do about it"),
)

# ---------------------------------------------------------------- inputs

ITEMS = Table(
    "items",
    "one product of the catalog",
    (
        _ITEM_ID,
        *(
            Column(
                name,
                "strings" if many else "string",
                f"text feature {name}; its first 16,384 characters are read",
                nullable=True,
                optional=True,
            )
            for name, many in TEXT_FEATURES.items()
        ),
    ),
    key=("item_id",),
)

ITEM_IMAGES = Table(
    "item_images",
    "one image of one product",
    (
        _ITEM_ID,
        Column("position", "int32", "order of the image on the product page, from 0"),
        Column("image_embedding", "vector", "frozen image embedding of model.image_length numbers (PinSage's place)"),
    ),
    key=("item_id", "position"),
)

QUERIES = Table(
    "queries",
    "one query: a viewed image (closeup) or a search text (search)",
    (
        _QUERY_ID,
        Column(
            "query_kind", "string", "first half of a task's name, such as closeup or search", max_bytes=MAX_ID_BYTES
        ),
        Column(
            "text",
            "string",
            "the query's text, if it has one; its first 16,384 characters are read",
            nullable=True,
            optional=True,
        ),
        Column(
            "query_embedding",
            "vector",
            "frozen query embedding, of 256 numbers or projected to them; null = it is made of text or pictures",
            nullable=True,
            optional=True,
        ),
        Column(
            "embedding_space",
            "string",
            "name and version of the frozen query encoder; needed where query_embedding is given",
            nullable=True,
            optional=True,
            max_bytes=MAX_ID_BYTES,
        ),
        Column(
            "query_item_id",
            "string",
            "the catalog item the query shows, if any",
            nullable=True,
            optional=True,
            max_bytes=MAX_ID_BYTES,
        ),
    ),
    key=("query_id",),
)

ENGAGEMENT_LOGS = Table(
    "engagement_logs",
    "one engagement of a user with an item after a query",
    (
        Column(
            "event_id",
            "string",
            "id of the event, at most 512 bytes: equal rows with one id are one event, delivered again; rows that "
            "differ share an id only where inputs.event_id_is says so",
            max_bytes=MAX_ID_BYTES,
        ),
        Column("event_ts", "timestamp", "when it happened, UTC"),
        Column("user_id", "string", "who did it, if known", nullable=True, optional=True),
        _QUERY_ID,
        _ITEM_ID,
        Column("engagement", "string", "second half of a task's name, such as click", max_bytes=MAX_ID_BYTES),
    ),
    key=("event_id",),
)

INPUTS = (ITEMS, ITEM_IMAGES, QUERIES, ENGAGEMENT_LOGS)
"""The shop's own tables, in the order in which a run meets them."""

# ---------------------------------------------------------------- written by the jobs

_OF_BEFORE = "null in tables of before"
SOURCE_HASH = "source_hash"
_SOURCE_HASH = Column(
    SOURCE_HASH,
    "int64",
    f"64-bit hash of what the row was made of: while it stays, so does the row; {_OF_BEFORE}",
    nullable=True,
    optional=True,
)

QUERY_EMBEDDINGS = Table(
    "query_embeddings",
    "one query with its frozen embedding",
    (
        _QUERY_ID,
        Column("query_kind", "string", "as in queries"),
        Column("query_embedding", "vector", "frozen query embedding, unit length", shape=_EMBEDDING),
        Column("embedding_space", "string", "name and version of the frozen encoder; one per query kind"),
        Column("query_item_id", "string", "the catalog item the query shows, if any", nullable=True),
        _SOURCE_HASH,
    ),
    key=("query_id",),
)

REJECTED_QUERIES = Table(
    "rejected_queries",
    "one query that cannot be used, and why",
    (
        Column("query_id", "string", "the query", nullable=True),
        *_REJECT_COLUMNS,
    ),
)

ITEM_TEXT_EMBEDDINGS = Table(
    "item_text_embeddings",
    "one product with the frozen embedding of its text",
    (
        _ITEM_ID,
        FROZEN_TEXT.values,
        Column("embedding_space", "string", "name of the frozen text encoder, one a version; empty = there is none"),
        _SOURCE_HASH,
    ),
    key=("item_id",),
)

VOCABULARY = Table(
    "vocabulary",
    "one token that the model knows",
    (
        Column("token", "string", "the token's text; words of a bigram and blanks are joined by #"),
        Column("token_kind", "string", "char_trigram, word_unigram or word_bigram"),
        Column("token_id", "int32", "dense id, from 0: trigrams, then unigrams, then bigrams, by frequency"),
        Column("token_count", "int64", "occurrences in the text features of the catalog"),
    ),
    key=("token_kind", "token"),
)

ITEM_FEATURES = Table(
    "item_features",
    "one product as the model reads it",
    (
        _ITEM_ID,
        _ITEM_KEY,
        *ELEMENT_COLUMNS,
        Column("out_of_vocabulary_count", "int32", "tokens of the item that the vocabulary lacks"),
        Column(
            "truncated_token_count",
            "int32",
            f"tokens beyond features.max_tokens_per_feature; {_OF_BEFORE}",
            nullable=True,
            optional=True,
        ),
        Column(
            "unused_image_count",
            "int32",
            f"images beyond model.max_images; {_OF_BEFORE}",
            nullable=True,
            optional=True,
        ),
        Column(FEATURES_HASH, "string", "128-bit hash of the feature columns, hexadecimal"),
        _SOURCE_HASH,
        _checksum(_CHECKED_ITEM),
    ),
    key=("item_id",),
    checksummed=_CHECKED_ITEM,
)

CHANGED_ITEM_FEATURES = replace(
    ITEM_FEATURES,
    name="changed_item_features",
    one_row_is="one product that the last build_item_features has otherwise than the one before, as the model reads it",
)
"""With the columns of ITEM_FEATURES; empty where all rows were made anew."""

ITEM_FEATURE_CHANGES = Table(
    "item_feature_changes",
    "one product that is added, changed or removed between the last two versions of item_features",
    (
        _ITEM_ID,
        _ITEM_KEY,
        Column("change", "string", "added, changed or removed"),
    ),
    key=("item_id",),
)
"""Empty where all rows were made anew: which version it goes on from, `ItemMetrics.kept_from` says."""

REJECTED_ITEMS = Table(
    "rejected_items",
    "one row of items or item_images that cannot be used, and why",
    (
        Column("item_id", "string", "the item", nullable=True),
        *_REJECT_COLUMNS,
    ),
)

PAIR_COLUMNS = (
    _QUERY_ID,
    _ITEM_ID,
    Column("query_key", "int64", "64-bit hash of query_id: the identity used for masks"),
    _ITEM_KEY,
    Column("query_item_key", "int64", "item_key of the item the query shows; 0 = none"),
    Column("engagement_count", "int64", "engagements of this query with this item in the window", is_positive=True),
    Column(
        "pair_weight", "float32", "weight in the loss: the count, each event discounted by its age", is_positive=True
    ),
)

_PACKED_QUERY = Column(
    "query_embedding",
    "binary",
    "little-endian float16 query embedding",
    shape=_EMBEDDING,
    cell_bytes=2 * EMBEDDING_DIM,
)

TRAINING_PAIRS = Table(
    "training_<task>",
    "one (query, item) pair with its engagement count, the query's embedding and the item's features",
    (
        *PAIR_COLUMNS,
        Column("fit_weight", "float32", "the part of pair_weight from before the validation window; 0 = none"),
        Column("fit_engagement_count", "int64", "the part of engagement_count from before the validation window"),
        Column(
            "negative_item_key", "int64", "item_key of an item that the query has a negative engagement with; 0 = none"
        ),
        Column("negative_weight", "float32", "how often that item counts in the row's denominator; 0 = none"),
        _PACKED_QUERY,
        *ELEMENT_COLUMNS,
        Column(FEATURES_HASH, "string", "as in item_features"),
        _checksum(_CHECKED_PAIR),
    ),
    key=("query_id", "item_id"),
    checksummed=_CHECKED_PAIR,
)

VALIDATION_PAIRS = Table(
    "validation_<task>",
    "one (query, item) pair of the validation window, the end of the training window, with its engagement count there",
    (*PAIR_COLUMNS, _PACKED_QUERY, _checksum(_CHECKED_VALIDATION)),
    key=("query_id", "item_id"),
    checksummed=_CHECKED_VALIDATION,
)

HELD_OUT_PAIRS = Table(
    "held_out_<task>",
    "one (query, item) pair of the held-out window with its engagement count",
    PAIR_COLUMNS,
    key=("query_id", "item_id"),
)


def filtered(table: Table, filters: Mapping[str, Kind]) -> Table:
    """The table with the shop's columns that results are filtered by, null where it does not know.

    Args:
        table: One of items, or one that follows from them.
        filters: Column -> its kind.
    """
    doc = "the shop's own column that results are filtered by (score.filters)"
    if table.name != ITEMS.name:
        doc += ", which build_item_features brings here from items: run it again where score.filters has changed since"
    further = (
        Column(name, kind, doc, nullable=True) for name, kind in filters.items() if name not in table.column_names
    )
    return replace(table, columns=(*table.columns, *further))


def training_pairs(task: Task) -> Table:
    """The training table of one task."""
    return replace(TRAINING_PAIRS, name=task.training_table)


def validation_pairs(task: Task) -> Table:
    """The table of validation pairs of one task."""
    return replace(VALIDATION_PAIRS, name=task.validation_table)


def held_out_pairs(task: Task) -> Table:
    """The table of held-out pairs of one task."""
    return replace(HELD_OUT_PAIRS, name=task.held_out_table)


ITEM_COUNTS = Table(
    "item_counts",
    "how often one item is a positive of one task's training table",
    (
        _ITEM_ID,
        _ITEM_KEY,
        Column("task", "string", "the task"),
        Column("pair_count", "int64", "rows of the training table with this item"),
        Column("engagement_count", "int64", "engagements behind those rows"),
        Column("fit_pair_count", "int64", "rows with a fit_weight above 0; 0 = unseen before the validation window"),
        Column("fit_engagement_count", "int64", "engagements behind those rows from before the validation window"),
    ),
    key=("item_id", "task"),
)

REJECTED_EVENTS = Table(
    "rejected_events",
    "one event of the logs that no training or held-out table counts, and why",
    (
        Column("event_id", "string", "as in the logs", nullable=True),
        Column("event_ts", "timestamp", "as in the logs", nullable=True),
        Column("query_id", "string", "as in the logs", nullable=True),
        Column("item_id", "string", "as in the logs", nullable=True),
        Column("engagement", "string", "as in the logs", nullable=True),
        *_REJECT_COLUMNS,
    ),
)

ITEM_EMBEDDINGS = Table(
    "item_embeddings",
    "one product of the catalog with its published embedding",
    (
        _ITEM_ID,
        Column("embedding", "vector", "the item's embedding, unit length", shape=_EMBEDDING),
        Column(
            "model_id", "string", "identity of weights, feature spec, query spaces and fallback; one value per version"
        ),
        Column(FEATURES_HASH, "string", "features_hash of the item_features row that was scored"),
        Column("scored_ts", "timestamp", "logical time of the scoring run, UTC"),
    ),
    key=("item_id",),
)

QUERY_VECTORS = Table(
    "query_vectors",
    "one query of the tasks' kinds with the vector to compare item_embeddings with",
    (
        _QUERY_ID,
        Column("query_kind", "string", "as in queries"),
        Column(
            "query_vector",
            "vector",
            "the frozen query embedding, adapted where the model has a query adapter; unit length",
            shape=_EMBEDDING,
        ),
        Column("model_id", "string", "as in item_embeddings: vectors of two models are not to be compared"),
    ),
    key=("query_id",),
)

ITEM_SHORT_VECTORS = Table(
    "item_short_vectors",
    "one product of the catalog with the short forms of its published embedding that score.short_vectors names: "
    "float32_64 with 64 numbers, or little-endian cells such as float16_256, or int8_64 with its int8_64_scale",
    (_ITEM_ID, Column("model_id", "string", "as in item_embeddings")),
    key=("item_id",),
)
"""A form has columns of its own: see schemas/short_vectors.py."""

RIVALS = (
    "popularity", "popularity_recent", "co_occurrence", "co_occurrence_recent", "tfidf", "bm25", "frozen_query", "sum"
)  # fmt: skip
"""What a shop has without training a model."""

FROZEN_UNSEEN, FROZEN_ALL = "frozen_unseen", "frozen_all"
"""What may be published in the place of the model's vectors: the frozen vectors of the texts of the items without a
training pair; or those of all items, compared with the frozen query vectors."""

EVALUATED_SYSTEMS = ("itemsage", FROZEN_UNSEEN, FROZEN_ALL, "untrained", "random", *RIVALS, "oracle")
"""What is compared, in the order in which reports show it."""

_INTERVAL = "of its 95 % interval over resampled queries; null below ten queries"
_DIFFERENCE = "itemsage's figure minus this one's"

EVALUATION = Table(
    "evaluation",
    "one figure of one system on one task",
    (
        Column("task", "string", "the task"),
        Column("system", "string", "itemsage or the name of a baseline; frozen_unseen, frozen_all: a fallback"),
        Column("metric", "string", "recall@1, recall@10, recall@100, mrr or ndcg@10; evaluate.k in the place of 10"),
        Column(
            "slice",
            "string",
            "which pairs, by their item: all; unseen or seen in training; head, middle, tail: each with a third of the "
            "training engagements; with_images, without_images, with_text, without_text; or evaluate.slice_by=value",
        ),
        Column("value", "float64", "the figure, 0 to 1"),
        Column("pair_count", "int64", "held-out pairs behind it"),
        Column("low", "float64", f"lower end {_INTERVAL}", nullable=True),
        Column("high", "float64", f"upper end {_INTERVAL}", nullable=True),
        Column("difference", "float64", f"{_DIFFERENCE}; null for itemsage", nullable=True),
        Column("difference_low", "float64", f"lower end {_INTERVAL}", nullable=True),
        Column("difference_high", "float64", f"upper end {_INTERVAL}", nullable=True),
    ),
    key=("task", "system", "metric", "slice"),
)

VALIDATION = replace(
    EVALUATION,
    name="validation",
    one_row_is="one figure of one system on one task, on the validation window; the model knows what came before",
)
"""Seen and unseen are by the engagements before that window."""

ITEM_CHANGES = Table(
    "item_changes",
    "one item that a version of item_embeddings has otherwise than the version before; and one head row a version",
    (
        Column("version", "int64", "of item_embeddings; those above the live one are of a run that died"),
        Column("item_id", "string", "as in item_embeddings; empty in the head row"),
        Column(
            "change",
            "string",
            "added, changed or removed; in the head row: some = the other rows of the version say which items, "
            "all = read it whole",
        ),
    ),
    key=("version", "item_id"),
)

RUNS = Table(
    "runs",
    "one run of a stage, as it ended; appended, never replaced",
    (
        Column("stage", "string", "the stage's name"),
        Column("status", "string", "done; already_done = nothing had changed since it was done; failed"),
        Column("exit_code", "int32", "0, or why it failed; docs/troubleshooting.md"),
        Column("as_of", "string", "dates.as_of, the logical date"),
        Column("run_id", "string", "of its run record: equal for a rerun of the same work; empty where it failed"),
        Column("started_ts", "timestamp", "when it began"),
        Column("seconds", "float64", "how long it took"),
        Column("rows_written", "int64", "rows of all tables that it wrote, or had written"),
        Column("rows_rejected", "int64", "of them, those in rejected_* tables"),
        Column("versions", "string", "table -> the version that it committed, or had committed, as JSON"),
        Column("error", "string", "its cause in one line; empty where there is none"),
        Column("code", "string", "the code that ran: package version and hash of its sources"),
    ),
)
"""Written by no one stage: whoever runs one appends to it (schemas/results.py)."""

# ---------------------------------------------------------------- the demo world's secret, for its oracle

TRUE_ITEM_VECTORS = Table(
    "true_item_vectors",
    "one product with the hidden vector behind its engagements",
    (_ITEM_ID, Column("true_vector", "vector", "affinity = dot product of the two true vectors, log scale")),
    key=("item_id",),
)

TRUE_QUERY_VECTORS = Table(
    "true_query_vectors",
    "one query and engagement with the hidden vector behind it",
    (
        _QUERY_ID,
        Column("engagement", "string", "the engagement the vector holds for: taste differs between them"),
        Column("true_vector", "vector", "affinity = dot product of the two true vectors, log scale"),
    ),
    key=("query_id", "engagement"),
)

MERGED = frozenset(
    [table.name for table in (ITEM_EMBEDDINGS, ITEM_SHORT_VECTORS, ITEM_TEXT_EMBEDDINGS, QUERY_EMBEDDINGS)]
    + ["graph_layers", "item_graph_images"]
)
"""Tables, by name, of which changed rows alone are written: they may have deletion vectors; Petastorm reads none."""
