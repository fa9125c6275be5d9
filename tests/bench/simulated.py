"""A machine with a real systemd and a zfsilod over a simulated host, whose tools take no time."""

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

PROGRAMS = {name: Path(__file__).with_name(name) for name in ("inside.py", "guest.py")}
PLACE = "/root"
TIMEOUT_S = 300


@contextmanager
def simulated() -> Iterator[SystemdHost]:
    """Boot the machine, start zfsilod, and add the host `take`."""
    machine = SystemdHost()
    install(machine)
    with machine:
        machine.write("/etc/systemd/system/zfsilod.service.d/simulate.conf", DROP_IN)
        machine.write("/etc/zfsilo/zfsilod.toml", CONFIG)
        for name, source in PROGRAMS.items():
            machine.copy_in(source, f"{PLACE}/{name}")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--now", "zfsilod.socket", "zfsilod.service")
        machine.run("zfsiloctl", "host", "add", "take", "--iqn", "iqn.2024-01.lab.take:host")
        yield machine


def ask(machine: SystemdHost, *words: str) -> Any:
    """Run the client inside, with the Python of zfsilo."""
    return _run(machine, "inside.py", *words)


def starts(machine: SystemdHost, rounds: int, *arguments: str) -> list[float]:
    """Return the seconds of starts of the Python of zfsilo."""
    times: list[float] = _run(machine, "guest.py", "python", str(rounds), *arguments)
    return times


def _run(machine: SystemdHost, program: str, *words: str) -> Any:
    interpreter = machine.read("/usr/bin/zfsiloctl").split()[0].removeprefix("#!")
    argv = (interpreter, "-I", f"{PLACE}/{program}", *words)
    return json.loads(machine.run(*argv, timeout_s=TIMEOUT_S).stdout)
