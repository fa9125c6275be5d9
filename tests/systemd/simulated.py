"""zfsilod with a simulated host under a real systemd, and helpers for tests of it."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.systemd.install import install
from tests.systemd.namespace import InnerResult, SystemdHost
from zfsilod.host.fake import Facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DROP_IN = """
[Service]
ExecStart=
ExecStart=/usr/bin/zfsilod --simulate-host
"""
CONFIG = """
[daemon]
host_id = "give"
"""
FACTS = "var/lib/zfsilo/facts.json"
MANAGER = ("org.zfsilo1", "/org/zfsilo1", "org.zfsilo1.Manager")
DEADLINE_S = 60


@contextmanager
def simulated_host() -> Iterator[SystemdHost]:
    """Boot a machine with zfsilod started on a simulated host, and the client `take` added."""
    machine = SystemdHost()
    install(machine)
    with machine:
        machine.write("/etc/systemd/system/zfsilod.service.d/simulate.conf", DROP_IN)
        machine.write("/etc/zfsilo/zfsilod.toml", CONFIG)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--now", "zfsilod.socket", "zfsilod.service")
        ctl(machine, "host", "add", "take", "--iqn", "iqn.2024-01.lab.take:host")
        yield machine


def ctl(machine: SystemdHost, *words: str, check: bool = True) -> InnerResult:
    """Run zfsiloctl in the machine."""
    return machine.run("zfsiloctl", *words, check=check, timeout_s=DEADLINE_S)


def facts(machine: SystemdHost) -> dict[str, Any]:
    """Return all facts of the simulated host, without the owner of the pool, which remains."""
    present = Facts(machine.root / FACTS).snapshot()
    return {name: fact for name, fact in present.items() if not name.startswith("owner:")}


def light_fuse(machine: SystemdHost, effects: int, *, how: str, when: str = "after") -> None:
    """Make the n-th effect from now fail, or kill the worker before or after it."""
    Facts(machine.root / FACTS).light_fuse(effects, when=when, how=how)


def operations(machine: SystemdHost) -> list[dict[str, Any]]:
    """Return all operations, oldest first."""
    listing: dict[str, list[dict[str, Any]]] = json.loads(
        ctl(machine, "operation", "list", "--json").stdout
    )
    return listing["operations"]


def delete_volumes(machine: SystemdHost) -> None:
    """Delete all volumes, and assert that no fact is left on the simulated host."""
    for volume in json.loads(ctl(machine, "volume", "list", "--json").stdout)["volumes"]:
        ctl(machine, "volume", "unpublish", volume["id"], "--all")
        ctl(machine, "volume", "delete", volume["id"], "--yes")
    assert facts(machine) == {}


def wait_until(condition: Callable[[], bool], description: str) -> None:
    """Wait for a condition that units of the machine bring about."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE_S} s: {description}"
        time.sleep(0.05)
