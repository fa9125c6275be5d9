"""Time to the first answer of a zfsilod that its socket starts, and its memory then."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from tests.bench.inside import LIBRARY
from tests.bench.simulated import ask, simulated, starts
from tests.bench.table import Figure, at_most, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.namespace import SystemdHost

ROUNDS = 7
IMPORTS = f"import sys; sys.path.insert(0, {LIBRARY!r}); import grpc.aio, dbus_next, lmdb"
JOIN = "/root/bench.join"
RATIO = 2.5
RESIDENT_MIB = {"daemon": 55, "gateway": 25}


def figures() -> Iterator[Figure]:
    """Measure on a simulated host under a real systemd."""
    answers, imports = [], []
    with simulated() as machine:
        for _round in range(ROUNDS):
            imports += starts(machine, 1, "-I", "-c", IMPORTS)
            machine.run("systemctl", "stop", "zfsilod.service")
            # Otherwise systemd refuses the sixth start in ten seconds, and stops the socket too.
            machine.run("systemctl", "reset-failed", "zfsilod.service")
            answers.append(ask(machine, "first"))
        daemon = memory(machine, "zfsilod.service")
        serve_others(machine)
        gateway = memory(machine, "zfsilod-gateway.service")
    ratio = median(a / b for a, b in zip(answers, imports, strict=True))
    yield at_most("first answer to its imports", ratio, RATIO, " times")
    yield Figure("first answer, cold", spread(answers))
    yield Figure("import grpc.aio, dbus_next, lmdb", spread(imports))
    for name, (resident, shared) in {"daemon": daemon, "gateway": gateway}.items():
        note = f" ({shared:.1f} MiB of it are mapped files)"
        limit = RESIDENT_MIB[name]
        yield at_most(f"resident memory of the {name}, idle", resident, limit, " MiB", note=note)


def serve_others(machine: SystemdHost) -> None:
    """Open the TCP port, and make one call over it, which starts the gateway."""
    machine.run("zfsiloctl", "pki", "init", "--name", "localhost")
    issue = ("pki", "issue", "user", "bench", "--role", "reader", "--address", "127.0.0.1")
    machine.run("zfsiloctl", *issue, "--file", JOIN)
    machine.run("systemctl", "enable", "--now", "zfsilod-tcp.socket")
    machine.run("zfsiloctl", "-H", JOIN, "info")


def memory(machine: SystemdHost, unit: str) -> tuple[float, float]:
    """Return the resident memory of a unit in MiB, and the part of it that is mapped files."""
    pid = machine.run("systemctl", "show", "--value", "-p", "MainPID", unit).stdout
    status = machine.read(f"/proc/{pid.strip()}/status").splitlines()
    values = dict(line.split(":", 1) for line in status if line.endswith("kB"))
    return int(values["VmRSS"].split()[0]) / 1024, int(values["RssFile"].split()[0]) / 1024
