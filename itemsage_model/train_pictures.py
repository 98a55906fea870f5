"""Train the head over frozen picture vectors on the pairs that build_picture_pairs last completed.

    python -m itemsage_model.train_pictures --settings pipeline.toml [--set section.key=value]

Starts `train.processes` processes on this machine, like the trainer of the item tower, which it is.

Reads: picture_features, picture_pairs and picture_pairs_validation, at the versions that the run record names.
Writes: `<warehouse>/models/<model_id>/` (safetensors + JSON), checkpoints while it runs, TensorBoard, its run record.
Safe to rerun: the same inputs and settings resume from the last checkpoint of an unfinished run.
"""

from __future__ import annotations

from itemsage_model.train import main
from itemsage_model.training.picture_inputs import PICTURE_TOWER as COURSE

if __name__ == "__main__":
    main(COURSE, __doc__)
