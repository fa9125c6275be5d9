"""csi-sanity over a simulated host: every spec of what is advertised passes, nothing is left."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.csi import simulated_paths
from tests.csi.processes import KEPT_FACTS, simulation
from tests.csi.suite.sanity import EXPECTED, SanityRun, sanity


@pytest.mark.timeout(600)
@pytest.mark.parametrize("access_type", ["mount", "block"])
def test_every_spec_passes(access_type: str) -> None:
    directory = Path(
        tempfile.mkdtemp(prefix="zfsilo-csi-")
    )  # short, because socket paths are limited
    with simulation(directory) as running:
        log = directory / "sanity.log"
        result = sanity(
            SanityRun(
                access_type=access_type,
                endpoint=running.endpoint,
                log=log,
                mount=f"{directory}/mount",
                staging=f"{directory}/staging",
                commands=commands(directory, running.facts),
            )
        )
    print(f"csi-sanity {access_type}: {result}")
    assert result == EXPECTED, log.read_text(errors="replace")[-8000:]
    facts = json.loads(running.facts.read_text())
    left = [name for name in facts if not name.startswith(KEPT_FACTS)]
    assert left == []
    shutil.rmtree(directory)


def commands(directory: Path, facts: Path) -> dict[str, Path]:
    """Write the suite's path commands, programs with one argument."""
    programs = {}
    for command in ("create", "remove", "check"):
        program = programs[command] = directory / command
        words = f'"{sys.executable}" "{simulated_paths.__file__}" "{facts}" {command} "$1"'
        program.write_text(f"#!/bin/sh\nexec {words}\n")
        program.chmod(0o755)
    return programs
