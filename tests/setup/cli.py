"""Command line of the set-up: python3 tests/setup TARGET..."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from tests.setup.command import CommandError
from tests.setup.sources import SourcesError

TARGETS = (
    "venv",
    "runtime",
    "tools",
    "prometheus",
    "csi",
    "systemd",
    "lab",
    "package",
    "nix",
    "cockpit",
    "browser",
    "kubernetes",
    "image",
    "kubelet",
)


def main() -> int:
    """Prepare each target and print the path of its product, one a line, on standard output."""
    parser = argparse.ArgumentParser(prog="python3 tests/setup", description=__doc__)
    parser.add_argument("target", nargs="+", choices=TARGETS)
    arguments = parser.parse_args()
    for target in dict.fromkeys(arguments.target):
        # Imported one by one, so that a target loads no module of another one.
        prepare = import_module(f"tests.setup.{target}").prepare
        try:
            print(prepare(), flush=True)
        except (CommandError, SourcesError, OSError) as error:
            print(f"setup: {target}: {error}", file=sys.stderr)
            return 1
    return 0
