"""Train the graph tower on the graph that build_item_graph last completed.

    python -m itemsage_model.train_graph --settings pipeline.toml [--set section.key=value]

Starts `train.processes` processes on this machine, like the trainer of the item tower, which it is.

Reads: graph_nodes and graph_pairs, at the versions that the run record names.
Writes: `<warehouse>/models/<model_id>/` (safetensors + JSON), checkpoints while it runs, TensorBoard, its run record.
Safe to rerun: the same inputs and settings resume from the last checkpoint of an unfinished run.
"""

from __future__ import annotations

from itemsage_model.train import main
from itemsage_model.training.graph_inputs import GRAPH_TOWER as COURSE

if __name__ == "__main__":
    main(COURSE, __doc__)
