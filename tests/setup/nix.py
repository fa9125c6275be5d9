"""System packages for the tests of nix/: the evaluator, without a store or network."""

from __future__ import annotations

from pathlib import Path

from tests.setup import apt

PACKAGES = ("nix-bin",)
PROGRAM = Path("/usr/bin/nix-instantiate")


def prepare() -> Path:
    """Install what is missing and return the path of the evaluator."""
    apt.install(PACKAGES, reason="evaluating nix/")
    return PROGRAM
