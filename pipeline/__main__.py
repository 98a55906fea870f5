"""`python -m pipeline ...` is `itemsage run ...`."""

from __future__ import annotations

import sys

from pipeline.console import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    main()
