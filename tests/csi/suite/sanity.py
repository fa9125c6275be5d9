"""Runs csi-sanity, the conformance suite of CSI, and counts its results."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from tests.setup.csi import prepare

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TIMEOUT_S = 3600
RESULT = re.compile(r"(\d+) Passed \| (\d+) Failed \| (\d+) Pending \| (\d+) Skipped")
PATH_COMMANDS = {
    "create": ("createmountpathcmd", "createstagingpathcmd"),
    "remove": ("removemountpathcmd", "removestagingpathcmd"),
    "check": ("checkpathcmd",),
}


class SanityResult(NamedTuple):
    """The number of specs by outcome."""

    passed: int
    failed: int
    pending: int
    skipped: int


# One spec is pending in the suite itself, and one is of SNAPSHOT_ACCESSIBILITY_CONSTRAINTS.
EXPECTED = SanityResult(passed=101, failed=0, pending=1, skipped=1)


class SanityRun(NamedTuple):
    """The options of one run."""

    access_type: str  # mount or block
    endpoint: str
    mount: str  # directories on the node
    staging: str
    commands: Mapping[str, Path]  # programs that create, remove and check a path on the node
    log: Path
    controller: str = ""  # endpoint of the controller if it is another process
    size_bytes: int = 1 << 30
    parameters: str = ""  # of each volume, as YAML


def sanity(run: SanityRun) -> SanityResult:
    """Run the suite and return its result; its output is in the log."""
    mutable = run.log.with_suffix(".mutable.yaml")
    mutable.write_text("zfs.compression: zstd\n")
    parameters = run.log.with_suffix(".parameters.yaml")
    parameters.write_text(run.parameters)
    flags = {
        "csi.endpoint": run.endpoint,
        "csi.controllerendpoint": run.controller,
        "csi.mountdir": run.mount,
        "csi.stagingdir": run.staging,
        "csi.testvolumeaccesstype": run.access_type,
        "csi.testvolumesize": str(run.size_bytes),
        "csi.testvolumeexpandsize": str(2 * run.size_bytes),
        "csi.testvolumemutableparameters": str(mutable),
        "csi.testvolumeparameters": str(parameters) if run.parameters else "",
        "csi.testnodevolumeattachlimit": "true",
        "ginkgo.timeout": f"{TIMEOUT_S}s",
        "ginkgo.no-color": "true",
    }
    for command, names in PATH_COMMANDS.items():
        flags |= {f"csi.{name}": str(run.commands[command]) for name in names}
    words = [f"--{name}={value}" for name, value in flags.items() if value]
    with run.log.open("w") as log:
        subprocess.run(
            [prepare() / "bin/csi-sanity", *words],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S + 60,
            check=False,
        )
    text = run.log.read_text(errors="replace")
    summaries = RESULT.findall(text)
    assert summaries, f"csi-sanity printed no summary:\n{text[-3000:]}"
    return SanityResult(*map(int, summaries[-1]))
