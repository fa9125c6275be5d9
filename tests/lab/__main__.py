"""A pair of machines to play with: python -m tests.lab [booted|ready]."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from tests.lab.errors import LabError
from tests.lab.pair import Pair, restore_pair
from tests.lab.snapshots import booted, ready

if TYPE_CHECKING:
    from tests.lab.machine import Machine

COMMAND_TIMEOUT_S = 600
USAGE = """\
give: COMMAND    run a shell command on give (take: COMMAND on take)
cut NAME         power cut, then boot
reboot NAME      orderly reboot
pull NAME        pull the cable between the machines out of NAME (plug NAME: put it back)
quit             end both machines (so does the end of the input)
"""
SSH = "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"


def main() -> int:
    """Restore a pair, tell how to reach it, and obey lines until the input ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("level", nargs="?", choices=("booted", "ready"), default="ready")
    level = parser.parse_args().level
    with restore_pair(ready() if level == "ready" else booted()) as pair:
        introduce(pair)
        while (line := read_line()) not in (None, "quit", "exit"):
            obey(pair, line or "")
    return 0


def introduce(pair: Pair) -> None:
    """Print the ways into the machines."""
    for machine in (pair.give, pair.take):
        ports = ", ".join(
            f"{guest} at 127.0.0.1:{host}" for guest, host in machine.place.forwards if guest != 22
        )
        way = f"-i {pair.images.ssh_key} -p {machine.forward(22)} root@127.0.0.1"
        print(f"{machine.name}: {SSH} {way}")
        print(f"      ports {ports}; console {machine.place.console}")
    print(USAGE, end="", flush=True)


def read_line() -> str | None:
    """The next line of input, or None at its end; a prompt only where a person reads it."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip() if line else None
    try:
        return input("lab$ ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def obey(pair: Pair, line: str) -> None:
    """Carry out one line; what goes wrong is told, and the machines stay."""
    machines = {machine.name: machine for machine in (pair.give, pair.take)}
    name, colon, command = line.partition(":")
    try:
        if colon and name in machines:
            run(machines[name], command)
            return
        match line.split():
            case []:
                pass
            case ["cut", name] if name in machines:
                print(f"{name} is up again after {machines[name].power_cut():.0f} s")
            case ["reboot", name] if name in machines:
                print(f"{name} is up again after {machines[name].reboot():.0f} s")
            case ["pull" | "plug" as action, name] if name in machines:
                machines[name].link(action == "plug")
            case _:
                print(USAGE, end="")
    except (LabError, KeyboardInterrupt) as error:
        print(error or "interrupted")


def run(machine: Machine, command: str) -> None:
    """Run a shell command in a machine and print what it printed."""
    result = machine.run("sh", "-c", command, timeout_s=COMMAND_TIMEOUT_S, check=False)
    print(result.stdout + result.stderr, end="", flush=True)
    if result.rc != 0:
        print(f"({machine.name}: ended with {result.rc})")


if __name__ == "__main__":
    sys.exit(main())
