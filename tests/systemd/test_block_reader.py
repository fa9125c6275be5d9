"""The unit that reads the blocks of a snapshot, under a real systemd: its end, and its sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.systemd.simulated import FACTS, ctl, delete_volumes, simulated_host, wait_until
from zfsilod.host.fake import Facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.namespace import SystemdHost

BLOCK = 16384
UNITS = ("systemctl", "list-units", "--all", "--no-legend", "--plain", "zfsilo-blocks-*")


@pytest.fixture(scope="module")
def sd() -> Iterator[SystemdHost]:
    """A machine whose zfsilod has a simulated host."""
    with simulated_host() as machine:
        yield machine


def write(sd: SystemdHost, blocks: dict[str, str]) -> None:
    """Set the blocks of the volume that are in use."""
    facts = Facts(sd.root / FACTS)
    facts.effect(f"blocks:{facts.get('zvol:tank/zfsilo/data')['uid']}", blocks)


def test_a_unit_reads_and_ends(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    write(sd, {"1": "a", "2": "b", "8": "c"})
    ctl(sd, "snapshot", "create", "data", "one")
    write(sd, {"1": "a", "2": "new"})
    ctl(sd, "snapshot", "create", "data", "two")
    listed = ctl(sd, "snapshot", "blocks", "one").stdout
    assert listed == f"{BLOCK} {2 * BLOCK} data\n{8 * BLOCK} {BLOCK} data\n"
    changed = ctl(sd, "snapshot", "blocks", "two", "--since", "one").stdout
    assert changed == f"{2 * BLOCK} {BLOCK} data\n{8 * BLOCK} {BLOCK} zero\n"
    refused = ctl(sd, "snapshot", "blocks", "one", "--since", "two", check=False)
    assert "is not older" in refused.stderr
    assert refused.stdout == ""
    wait_until(lambda: sd.run(*UNITS).stdout == "", "the units are gone")
    for name in ("one", "two"):
        ctl(sd, "snapshot", "delete", name)
    delete_volumes(sd)
