"""Generates the modules of the .proto files."""

from __future__ import annotations

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[2] / "proto/build.py"))["generate"]()
