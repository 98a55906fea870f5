"""One of several training processes: what `itemsage_model.train` and `jobs/train.py` start, never a person.

python -m itemsage_model.rank FOLDER       settings.json lies in that private folder
"""

from __future__ import annotations

import sys
from pathlib import Path

from itemsage_model.train import train_on_this_rank
from schemas.command_line import exit_code_of_errors
from schemas.orphans import end_with_parent
from schemas.settings import Settings

if __name__ == "__main__":
    end_with_parent()
    with exit_code_of_errors():
        train_on_this_rank(Settings.model_validate_json((Path(sys.argv[1]) / "settings.json").read_text()))
