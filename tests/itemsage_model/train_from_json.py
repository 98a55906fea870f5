"""What test_trainer starts under torchrun: train with settings from a JSON file."""

from __future__ import annotations

import sys
from pathlib import Path

from itemsage_model.train import train_on_this_rank
from schemas.settings import Settings

if __name__ == "__main__":
    train_on_this_rank(Settings.model_validate_json(Path(sys.argv[1]).read_text()))
