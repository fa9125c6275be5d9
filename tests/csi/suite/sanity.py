"""csi-sanity: how it is run, and what came of it."""

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


class Result(NamedTuple):
    """How many specs ended how."""

    passed: int
    failed: int
    pending: int
    skipped: int


class Run(NamedTuple):
    """What one run is told."""

    access_type: str  # mount or block
    endpoint: str
    mount: str  # folders on the node
    staging: str
    commands: Mapping[str, Path]  # create, remove and check of a path on the node
    log: Path
    controller: str = ""  # the controller's endpoint, when it is another process
    size_bytes: int = 1 << 30


def sanity(run: Run, *more: str) -> Result:
    """Run the suite, and return how it ended; all it said is in the log."""
    mutable = run.log.with_suffix(".mutable.yaml")
    mutable.write_text("zfs.compression: zstd\n")
    flags = {
        "csi.endpoint": run.endpoint,
        "csi.controllerendpoint": run.controller,
        "csi.mountdir": run.mount,
        "csi.stagingdir": run.staging,
        "csi.testvolumeaccesstype": run.access_type,
        "csi.testvolumesize": str(run.size_bytes),
        "csi.testvolumeexpandsize": str(2 * run.size_bytes),
        "csi.testvolumemutableparameters": str(mutable),
        "csi.testnodevolumeattachlimit": "true",
        "ginkgo.timeout": f"{TIMEOUT_S}s",
        "ginkgo.no-color": "true",
    }
    for verb, names in PATH_COMMANDS.items():
        flags |= {f"csi.{name}": str(run.commands[verb]) for name in names}
    words = [f"--{name}={value}" for name, value in flags.items() if value]
    with run.log.open("w") as log:
        subprocess.run(
            [prepare() / "bin/csi-sanity", *words, *more], stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, timeout=TIMEOUT_S + 60, check=False,
        )  # fmt: skip
    return _result(run.log.read_text(errors="replace"))


def _result(text: str) -> Result:
    found = RESULT.findall(text)
    assert found, f"the suite did not come to an end:\n{text[-3000:]}"
    return Result(*map(int, found[-1]))
