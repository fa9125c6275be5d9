"""The udev rule of a server: only zvols with the mark of a volume are not probed.

tests/package runs it with the udev of two releases.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from zfsilod.host.disks import FAILOVER_S
from zfsilod.host.lio import PRODUCT, VENDOR
from zfsilod.host.nvme_paths import MAX_KB
from zfsilod.host.nvmet import MODEL

HOST = Path(__file__).parents[2] / "units/host"
POLLING_INTERVAL_S = 5  # the default of multipath.conf(5)
OURS = 'test "$*" = "get -H -o value -s local zfsilo:uid tank/zfsilo/data" && echo 0123abcd'


def is_left_alone(folder: Path, zvol_id: str, zfs: str) -> bool:
    """Run the helper of the rule with these scripts in place of the tools of OpenZFS."""
    for name, script in {"zvol_id": zvol_id, "zfs": zfs}.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    helper = [str(HOST / "zfsilo-zvol"), "/dev/zd0"]
    return subprocess.run(helper, env=environment, timeout=30, check=False).returncode == 0


@pytest.mark.parametrize(
    ("zvol_id", "zfs", "expected"),
    [
        ("echo tank/zfsilo/data", OURS, True),
        ("echo tank/zfsilo/data@monday", OURS, True),
        ("echo tank/vm/disk", "exit 0", False),  # no local mark: nothing is printed
        ("echo tank/vm/disk", "echo pool I/O is currently suspended >&2; exit 1", True),
        ("exit 1", OURS, False),
    ],
    ids=["volume", "snapshot", "another", "unknown", "not a zvol"],
)
def test_only_a_marked_zvol_is_left_alone(
    zvol_id: str, zfs: str, *, expected: bool, tmp_path: Path
) -> None:
    assert is_left_alone(tmp_path, zvol_id, zfs) == expected


def test_every_rule_names_a_mark_of_zfsilo() -> None:
    lines = (HOST / "59-zfsilo.rules").read_text().splitlines()
    acting = [line for line in lines if "UDEV_DISABLE" in line]
    marks = (
        'PROGRAM=="zfsilo-zvol $devnode"',
        'ATTRS{vendor}=="zfsilo*"',
        f'ATTRS{{model}}=="{MODEL}*"',
    )
    assert [next(mark for mark in marks if mark in line) for line in acting] == list(marks)


def test_requests_over_nvme_are_limited_before_first_use() -> None:
    (line,) = [one for one in (HOST / "59-zfsilo.rules").read_text().splitlines() if MODEL in one]
    assert f'ATTR{{queue/max_sectors_kb}}="{MAX_KB}"' in line


def test_multipath_has_settings_for_disks_of_zfsilo_only() -> None:
    lines = (HOST / "multipath.conf").read_text().splitlines()
    entries = [line.strip() for line in lines if not line.strip().startswith("#")]
    assert entries[:4] == ["devices {", "device {", f'vendor "{VENDOR}"', f'product "{PRODUCT}"']
    assert [line for line in entries if line.endswith("{")] == entries[:2]
    assert f"fast_io_fail_tmo {FAILOVER_S}" in entries, "multipathd and LossWait agree"
    (retries,) = [int(line.split()[1]) for line in entries if line.startswith("no_path_retry")]
    assert retries * POLLING_INTERVAL_S == 3600, "a bound, as the comment says"
