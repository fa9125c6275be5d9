"""Time to the first answer of a zfsilod that its socket starts, and its memory then."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from tests.bench.inside import LIBRARY
from tests.bench.simulated import ask, simulated
from tests.bench.table import Figure, at_most, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.namespace import SystemdHost

ROUNDS = 7
IMPORTS = f"import sys; sys.path.insert(0, {LIBRARY!r}); import grpc.aio, dbus_next, lmdb"
RATIO, RESIDENT_MIB = 2.5, 60


def figures() -> Iterator[Figure]:
    """Measure on a simulated host under a real systemd."""
    answers, imports = [], []
    with simulated() as machine:
        for _round in range(ROUNDS):
            imports += ask(machine, "python", "1", "-I", "-c", IMPORTS)
            machine.run("systemctl", "stop", "zfsilod.service")
            # Otherwise systemd refuses the sixth start in ten seconds, and stops the socket too.
            machine.run("systemctl", "reset-failed", "zfsilod.service")
            answers.append(ask(machine, "first"))
        resident, shared = memory(machine)
    ratio = median(a / b for a, b in zip(answers, imports, strict=True))
    yield at_most("first answer to its imports", ratio, RATIO, " times")
    yield Figure("first answer, cold", spread(answers))
    yield Figure("import grpc.aio, dbus_next, lmdb", spread(imports))
    note = f" ({shared:.1f} MiB of it are mapped files)"
    yield at_most("resident memory, idle", resident, RESIDENT_MIB, " MiB", note=note)


def memory(machine: SystemdHost) -> tuple[float, float]:
    """Return the resident memory of the daemon in MiB, and the part of it that is mapped files."""
    pid = machine.run("systemctl", "show", "--value", "-p", "MainPID", "zfsilod.service").stdout
    status = machine.read(f"/proc/{pid.strip()}/status").splitlines()
    values = dict(line.split(":", 1) for line in status if line.endswith("kB"))
    return int(values["VmRSS"].split()[0]) / 1024, int(values["RssFile"].split()[0]) / 1024
