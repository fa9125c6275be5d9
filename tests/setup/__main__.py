"""Entry point of the set-up, run as a folder: python3 tests/setup TARGET..."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this folder first on the path, where venv.py would hide the standard library's
    # module of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from tests.setup.cli import main

    sys.exit(main())
