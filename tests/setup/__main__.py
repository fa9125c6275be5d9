"""Command line: python3 tests/setup TARGET..., where a target is venv, systemd or lab."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

TARGETS = ("venv", "systemd", "lab")


def main() -> int:
    """Prepare each target and print the path of its product, one a line, on standard output."""
    parser = argparse.ArgumentParser(prog="python3 tests/setup", description=__doc__)
    parser.add_argument("target", nargs="+", choices=TARGETS)
    arguments = parser.parse_args()
    for target in dict.fromkeys(arguments.target):
        # Imported one by one: each target is quick only if it loads nothing of the others.
        prepare = import_module(f"tests.setup.{target}").prepare
        print(prepare(), flush=True)
    return 0


if __name__ == "__main__":
    # Run as a folder, Python puts the folder itself on the path, where venv.py would hide the
    # standard library's module of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    sys.exit(main())
