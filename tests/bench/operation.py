"""Time of one change: from request to reply, and of its worker."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from tests.bench.simulated import ask, simulated, starts
from tests.bench.table import Figure, at_most, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.namespace import SystemdHost

ROUNDS = 40
# Makes systemd keep a unit that has ended, with its times.
KEEP = "[Service]\nRemainAfterExit=yes\n"
KEEP_FILE = "/etc/systemd/system/zfsilo-op-.service.d/bench.conf"
STARTED, ENDED = "ExecMainStartTimestampMonotonic", "ExecMainExitTimestampMonotonic"
TITLES = {"resize": "update", "publish": "publish", "unpublish": "unpublish"}
REPLY_MS, CPU_MS = 45, 45


def figures() -> Iterator[Figure]:
    """Measure on a simulated host under a real systemd."""
    with simulated() as machine:
        ask(machine, "changes", "warm", "5")
        before = cpu_ms(machine)
        changes = ask(machine, "changes", "data", str(ROUNDS))
        cpu = (cpu_ms(machine) - before) / sum(map(len, changes.values()))
        for request, times in changes.items():
            middle = 1e3 * median(times)
            note = f" p50 ({spread(times)})"
            yield at_most(f"{request}, request to reply", middle, REPLY_MS, " ms", note=note)
        yield at_most("CPU of an operation, all processes", cpu, CPU_MS, " ms")
        for request, times in workers(machine).items():
            yield Figure(f"worker of {request}", spread(times))
        started = starts(machine, ROUNDS, "-I", "-S", "-c", "pass")
        yield Figure("python3 -I -S -c pass beside it", spread(started))


def cpu_ms(machine: SystemdHost) -> float:
    """Return the CPU time that all processes of the machine have used."""
    usage = (machine.cgroup / "cpu.stat").read_text().split()
    return int(usage[usage.index("usage_usec") + 1]) / 1e3


def workers(machine: SystemdHost) -> dict[str, list[float]]:
    """Return the run times of workers by request, from the clock of systemd."""
    machine.write(KEEP_FILE, KEEP)
    machine.run("systemctl", "daemon-reload")
    ask(machine, "changes", "kept", str(ROUNDS // 3))
    shown = machine.run("systemctl", "show", "-p", f"Description,{STARTED},{ENDED}", "zfsilo-op-*")
    times: dict[str, list[float]] = {"update": [], "publish": [], "unpublish": []}
    for unit in shown.stdout.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in unit.splitlines())
        word = values["Description"].split()[1]  # "zfsilo: publish data to take"
        if word in TITLES:
            times[TITLES[word]].append((int(values[ENDED]) - int(values[STARTED])) / 1e6)
    machine.run("rm", KEEP_FILE)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "stop", "zfsilo-op-*")
    return times
