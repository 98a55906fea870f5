"""The course of the graph tower: what `train_graph` reads, and the tower that it begins with."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from itemsage_model.data.graph_batches import PAIRS, GraphBatches
from itemsage_model.data.graph_nodes import read_nodes
from itemsage_model.data.pinned_files import pin_version
from itemsage_model.data.reader import RowStream, Weight
from itemsage_model.encoders.graph_tower import LAYERS, GraphTower, GraphTowerSpec
from itemsage_model.training import distributed
from itemsage_model.training.inputs import Course, Inputs
from schemas.contracts import ITEM_TEXT
from schemas.graph_tables import GRAPH_NODES, GRAPH_PAIRS
from schemas.presets import Candidate
from schemas.records import read_record
from schemas.settings import LossSettings, ModelSettings, Settings, TaskSettings
from schemas.stages import BUILD_ITEM_GRAPH, TRAIN_GRAPH

_TASK = TaskSettings(query_kind="item", engagement="neighbour")
"""The one task there is: to find an item of the same group."""


def settings_of(shops: Settings) -> Settings:
    """The shop's settings with [train] by [graph], the item tower's loss as far as it samples, and one task.

    A softmax over the whole catalog would need all nodes' surroundings in every step: the form is then "mixed".
    """
    form = "mixed" if shops.loss.form in ("full", "bucketed") else shops.loss.form
    loss = LossSettings.model_validate(
        shops.loss.model_dump() | {"form": form, "frequency": "sketch", "distillation": 0.0, "prefixes": ()}
    )
    changed = {"loss": loss, "train": shops.graph.train_settings(shops.train), "tasks": (_TASK,), "negatives": ()}
    return shops.model_copy(update=changed | {"model": ModelSettings(image_length=shops.model.image_length)})


def pin_inputs(settings: Settings) -> Inputs:
    """The tables of the last complete graph.

    Raises:
        InputError: there is none.
    """
    record = read_record(settings.layout, BUILD_ITEM_GRAPH)
    nodes, pairs = record.output(GRAPH_NODES.name), record.output(GRAPH_PAIRS.name)
    spec = GraphTowerSpec(
        settings.graph,
        settings.loss,
        record.metrics.node_length,
        settings.model.image_length,
        record.made_with.get(ITEM_TEXT, ""),
    )
    nothing = np.empty(0, np.int64)
    return Inputs(
        [pin_version(pairs)],
        pin_version(nodes),
        nothing,
        np.empty(0),
        nothing,
        spec,
        record.made_with,
        {record.stage: record.sha256},
        (pairs, nodes),
        (),
        has_images=settings.inputs.has_images,
    )


def _for_pass(pinned: Inputs, settings: Settings, weight: Weight) -> Inputs:
    """The same: the whole graph is from before the validation window."""
    del settings, weight
    return pinned


def _begin(inputs: Inputs, settings: Settings) -> GraphTower:
    return cast(GraphTower, inputs.spec.build(seed=settings.train.seed))


def _candidates(inputs: Inputs, settings: Settings) -> list[Candidate]:
    del inputs
    return [Candidate("graph", settings, "[graph] says how it is trained")]


def make_batches(inputs: Inputs, settings: Settings, start_step: int, device: torch.device) -> GraphBatches:
    """This rank's endless batches, in the CPU's memory, with all nodes."""
    del device
    rank, ranks, train = distributed.rank(), distributed.world_size(), settings.train
    spec = cast(GraphTowerSpec, inputs.spec)
    return GraphBatches(
        RowStream(inputs.tasks[0], PAIRS, train.shuffle_rows, train.seed, 1, rank, ranks),
        read_nodes(inputs.catalog, spec.node, settings.deadlines.read_seconds),
        train.batch_size // ranks,
        train.negative_count // ranks,
        settings.graph.hard_share,
        settings.graph.alone_share,
        train.steps,
        train.seed,
        start_step,
        LAYERS,
    )


GRAPH_TOWER = Course(TRAIN_GRAPH, settings_of, pin_inputs, _for_pass, _begin, _candidates, make_batches)
