"""What graph vectors find beside the features they are made of: recall@10 of held-out pairs, with intervals.

    python -m experiments.graph_vectors --settings FILE [--set section.key=value ...]

Reads what a warehouse holds after build_training_tables and embed_graph: graph_nodes, item_graph_images and the
held_out_<task> tables of tasks whose queries show an item. The query is the vector of that item; all other items of the
catalog compete. Rows: the texts' frozen vectors, the pictures', both side by side (raw), and the graph's; each over all
pairs, and over those whose item is in no group with another before the validation window.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from itemsage_model.data.graph_nodes import GraphNodes, read_nodes
from itemsage_model.data.pinned_files import pin_version
from schemas.cells import to_matrix
from schemas.command_line import settings_of, settings_parser
from schemas.graph_tables import GRAPH_NODES, ITEM_GRAPH_IMAGES, NODE
from schemas.records import read_record
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_GRAPH, BUILD_TRAINING_TABLES, EMBED_GRAPH
from schemas.storage import read_columns
from schemas.tables import EMBEDDING_DIM

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

_K, _MOST_PAIRS, _AT_ONCE, _RESAMPLES = 10, 20_000, 512, 1_000


def held_out_rows(settings: Settings, nodes: GraphNodes) -> tuple[Rows, Rows]:
    """The rows of the items that the queries show, and of those engaged with, of at most 20,000 held-out pairs."""
    record, parts = read_record(settings.layout, BUILD_TRAINING_TABLES), []
    for task in settings.task_list:
        version = record.output(task.held_out_table)
        pairs = read_columns(version.uri, version.version, ["query_item_key", "item_key"])
        parts.append(np.stack([pairs[name].to_numpy() for name in ("query_item_key", "item_key")]))
    keys = np.unique(np.concatenate(parts, axis=1), axis=1)
    keys = keys[:, np.isin(keys, nodes.item_key).all(axis=0)]
    if keys.shape[1] > _MOST_PAIRS:
        keys = keys[:, np.random.default_rng(1).choice(keys.shape[1], _MOST_PAIRS, replace=False)]
    shown, engaged = (nodes.rows_of(row, "held-out pairs") for row in keys)
    return shown, engaged


def hits(vectors: Floats, shown: Rows, engaged: Rows) -> npt.NDArray[np.float64]:
    """Whether each pair's item is among the ten nearest of the item that its query shows, which does not compete."""
    found = []
    for first in range(0, len(shown), _AT_ONCE):
        queries, items = shown[first : first + _AT_ONCE], engaged[first : first + _AT_ONCE]
        scores, row = vectors[queries] @ vectors.T, np.arange(len(queries))
        own = scores[row, items]
        scores[row, queries] = -np.inf
        found.append((scores > own[:, None]).sum(axis=1) < _K)
    return np.concatenate(found).astype(np.float64)


def systems(settings: Settings, nodes: GraphNodes) -> Iterator[tuple[str, Floats]]:
    """The name and the vectors [node, length] of each system, unit length."""
    raw = nodes.features.astype(np.float32)
    yield "text", _unit(raw[:, :EMBEDDING_DIM])
    if raw.shape[1] > EMBEDDING_DIM:
        yield "pictures", _unit(raw[:, EMBEDDING_DIM:])
        yield "raw: both", _unit(raw)
    version = read_record(settings.layout, EMBED_GRAPH).output(ITEM_GRAPH_IMAGES.name)
    stored = read_columns(version.uri, version.version, ["item_id", "image_embedding"]).sort_by("item_id")
    record = read_record(settings.layout, BUILD_ITEM_GRAPH).output(GRAPH_NODES.name)
    keys = read_columns(record.uri, record.version, ["item_id", "item_key"]).sort_by("item_id")
    vectors = np.empty((len(nodes), len(stored["image_embedding"][0])), np.float32)
    vectors[nodes.rows_of(keys["item_key"].to_numpy(), GRAPH_NODES.name)] = to_matrix(stored["image_embedding"])
    yield "graph", _unit(vectors)


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return unit


def interval(hit: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the mean over resampled pairs."""
    random = np.random.default_rng(1)
    means = [hit[random.integers(len(hit), size=len(hit))].mean() for _ in range(_RESAMPLES)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def main() -> None:
    """Print the table."""
    settings = settings_of(settings_parser("experiments.graph_vectors", __doc__).parse_args())
    graph = read_record(settings.layout, BUILD_ITEM_GRAPH)
    node = NODE.sized(slots=1, length=graph.metrics.node_length)
    nodes = read_nodes(pin_version(graph.output(GRAPH_NODES.name)), node)
    shown, engaged = held_out_rows(settings, nodes)
    slices = {"all": np.ones(len(engaged), bool), "without neighbours": nodes.neighbours.counts[engaged] == 0}
    print("| vectors | pairs | count | recall@10 | 95 % |\n| --- | --- | --- | --- | --- |")
    for name, vectors in systems(settings, nodes):
        hit = hits(vectors, shown, engaged)
        for part, rows in slices.items():
            if rows.any():
                low, high = interval(hit[rows])
                print(f"| {name} | {part} | {rows.sum():,} | {hit[rows].mean():.4f} | {low:.4f} to {high:.4f} |")


if __name__ == "__main__":
    main()
