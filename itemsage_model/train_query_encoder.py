"""Train the shop's own text encoder on the pairs that build_query_pairs last completed.

    python -m itemsage_model.train_query_encoder --settings pipeline.toml [--set section.key=value]

The same trainer as that of the item tower, with its processes, checkpoints, validation and model files.

Reads: query_pairs, query_pairs_validation, item_text_pairs and item_features, at the versions that the run records
name; the transformer in search_text.folder.
Writes: `<warehouse>/models/<model_id>/` (safetensors + JSON), checkpoints while it runs, TensorBoard, its run record.
Safe to rerun: the same inputs and settings resume from the last checkpoint of an unfinished run.

Exit codes: as of `itemsage_model.train`.
"""

from __future__ import annotations

from itemsage_model.train import main
from itemsage_model.training.query_inputs import QUERY_ENCODER

if __name__ == "__main__":
    main(QUERY_ENCODER, __doc__)
