"""One of several training processes: what `itemsage_model.train` and `jobs/train.py` start, never a person.

python -m itemsage_model.rank FOLDER       settings.json lies in that private folder, and the name of the stage
"""

from __future__ import annotations

import sys
from pathlib import Path

from itemsage_model.train import train_on_this_rank
from itemsage_model.training.courses import course_of
from schemas.command_line import exit_code_of_errors
from schemas.orphans import end_with_parent
from schemas.settings import Settings

if __name__ == "__main__":
    end_with_parent()
    folder = Path(sys.argv[1])
    with exit_code_of_errors():
        settings = Settings.model_validate_json((folder / "settings.json").read_text())
        train_on_this_rank(settings, course_of((folder / "stage").read_text()))
