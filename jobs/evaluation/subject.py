"""What an evaluation is about: a model, where its vectors come from, and what its rivals may know."""

from __future__ import annotations

from dataclasses import dataclass

from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import SavedModel


@dataclass(frozen=True)
class Subject:
    """What is measured against what.

    Attributes:
        model: The trained model.
        is_published: Whether the items' vectors are those of item_embeddings; else the model scores the items here.
        adapts: Whether queries go through the model's adapter.
        count: Column of engagements that the rivals may know, in the training tables and item_counts.
        weight: The same in the training tables, each engagement counted by its age.
        has_fallback: Whether the frozen vectors of the items' texts may be published in the place of the model's.
    """

    model: SavedModel[ItemTowerSpec]
    is_published: bool = True
    adapts: bool = True
    count: str = "engagement_count"
    weight: str = "pair_weight"
    has_fallback: bool = False
