"""The tables of the graph of items: its nodes with their neighbours, pairs to train on, layers, and its vectors."""

from __future__ import annotations

from dataclasses import replace

from schemas.columns import Column, Table
from schemas.elements import Element
from schemas.tables import ITEM_FEATURES, ITEM_IMAGES, REJECTED_EVENTS, ROW_CHECKSUM, SOURCE_HASH

_ITEM_ID, _ITEM_KEY = ITEM_FEATURES.column("item_id"), ITEM_FEATURES.column("item_key")
_CHECKED_NODE = ("item_id", "item_key", "node_embedding", "neighbour_keys", "neighbour_weights", "hard_keys")
_CHECKED_PAIR = ("query_item_key", "item_key", "pair_weight")


def _checksum(columns: tuple[str, ...]) -> Column:
    return replace(ITEM_FEATURES.column(ROW_CHECKSUM), doc=f"CRC-32 of {', '.join(columns)}; see schemas/checksums.py")


NODE = Element(
    "node",
    Column(
        "node_embedding",
        "binary",
        "little-endian float16: the frozen embedding of the item's text, of 256 numbers, then, where the shop has "
        "images, the mean of its images at unit length, of model.image_length numbers; zeros for what is missing",
        shape=(-1,),
    ),
    "<f2",
)
"""A node's features, one vector."""

GRAPH_NODES = Table(
    "graph_nodes",
    "one product as the graph tower reads it: its frozen features, and the items that walks from it have met",
    (
        _ITEM_ID,
        _ITEM_KEY,
        NODE.values,
        Column(
            "neighbour_keys",
            "binary",
            "little-endian int64 item_key of the graph.neighbours items most often visited, most often first; empty = "
            "the item is in no group with another",
            shape=(-1,),
        ),
        Column(
            "neighbour_weights", "binary", "little-endian float32 share of the visits to them, summing up to 1",
            shape=(-1,),
        ),
        Column(
            "hard_keys",
            "binary",
            "little-endian int64 item_key of the visited items from rank graph.hard_from on that no walk has found in "
            "one group with it",
            shape=(-1,),
        ),
        _checksum(_CHECKED_NODE),
    ),
    key=("item_id",),
    checksummed=_CHECKED_NODE,
)  # fmt: skip

GRAPH_PAIRS = Table(
    "graph_pairs",
    "one item in one group, with another item drawn from that group",
    (
        Column("query_item_key", "int64", "item_key of the item"),
        Column("item_key", "int64", "item_key of the other one, which the tower learns to find"),
        Column("pair_weight", "float32", "the item's engagements in the group, by age", is_positive=True),
        _checksum(_CHECKED_PAIR),
    ),
    checksummed=_CHECKED_PAIR,
)

REJECTED_GRAPH_EVENTS = replace(
    REJECTED_EVENTS,
    name="rejected_graph_events",
    one_row_is="one event of the logs that the graph of items leaves out, and why",
)

_SOURCE_HASH = Column(SOURCE_HASH, "int64", "64-bit hash of what the row was made of: while it stays, so does the row")

GRAPH_LAYERS = Table(
    "graph_layers",
    "one product with its vector after the first graph convolution, and what it tells those it is a neighbour of",
    (
        _ITEM_ID,
        _ITEM_KEY,
        Column("hidden", "binary", "little-endian float16, graph.width numbers, unit length", shape=(-1,)),
        Column("message", "binary", "little-endian float16, graph.width numbers", shape=(-1,)),
        _SOURCE_HASH,
    ),
    key=("item_id",),
)

ITEM_GRAPH_IMAGES = Table(
    "item_graph_images",
    "one product with its graph vector, as an image of it: a table that inputs.item_images may name",
    (
        *ITEM_IMAGES.columns,
        _SOURCE_HASH,
    ),
    key=("item_id",),
)
