"""A machine with a real systemd whose zfsilod changes a simulated host: tools that take no time."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.systemd.install import install
from tests.systemd.namespace import SystemdHost
from tests.systemd.simulated import CONFIG, DROP_IN

if TYPE_CHECKING:
    from collections.abc import Iterator

INSIDE = Path(__file__).with_name("inside.py")
PLACE = "/root/inside.py"
TIMEOUT_S = 300


@contextmanager
def simulated() -> Iterator[SystemdHost]:
    """Boot the machine, with zfsilod started and the host `take` known to it."""
    machine = SystemdHost()
    install(machine)
    with machine:
        machine.write("/etc/systemd/system/zfsilod.service.d/simulate.conf", DROP_IN)
        machine.write("/etc/zfsilo/zfsilod.toml", CONFIG)
        machine.copy_in(INSIDE, PLACE)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--now", "zfsilod.socket", "zfsilod.service")
        machine.run("zfsiloctl", "host", "add", "take", "--iqn", "iqn.2024-01.lab.take:host")
        yield machine


def ask(machine: SystemdHost, *words: str) -> Any:
    """Run the client inside, with the Python that zfsilo runs with."""
    interpreter = machine.read("/usr/bin/zfsiloctl").split()[0].removeprefix("#!")
    return json.loads(machine.run(interpreter, "-I", PLACE, *words, timeout_s=TIMEOUT_S).stdout)
