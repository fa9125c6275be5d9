"""The conformance suite over a simulated host: everything runs and passes, nothing is left over."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.csi import paths
from tests.csi.processes import simulation
from tests.csi.suite.sanity import Result, Run, sanity

EXPECTED = Result(passed=95, failed=0, pending=1, skipped=0)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("access_type", ["mount", "block"])
def test_every_spec_passes(access_type: str) -> None:
    directory = Path(tempfile.mkdtemp(prefix="zfsilo-csi-"))  # short: sockets lie in it
    with simulation(directory) as running:
        log = directory / "sanity.log"
        result = sanity(
            Run(
                access_type=access_type, endpoint=running.endpoint, log=log,
                mount=f"{directory}/mount", staging=f"{directory}/staging",
                commands=commands(directory, running.facts),
            )
        )  # fmt: skip
    print(f"csi-sanity {access_type}: {result}")
    assert result == EXPECTED, log.read_text(errors="replace")[-8000:]
    left = [name for name in json.loads(running.facts.read_text()) if "content:" not in name]
    assert left == []
    shutil.rmtree(directory)


def commands(directory: Path, facts: Path) -> dict[str, Path]:
    """Write the suite's path commands: it runs a program with one argument."""
    made = {}
    for verb in ("create", "remove", "check"):
        made[verb] = directory / verb
        words = f'"{sys.executable}" "{paths.__file__}" "{facts}" {verb} "$1"'
        made[verb].write_text(f"#!/bin/sh\nexec {words}\n")
        made[verb].chmod(0o755)
    return made
