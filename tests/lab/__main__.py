"""A prompt for a pair of machines: python -m tests.lab [booted|ready]."""

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
quit             stop both machines (also at the end of input)
"""
SSH = "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"


def main() -> int:
    """Restore a pair, print how to reach it, and carry out commands until the input ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("level", nargs="?", choices=("booted", "ready"), default="ready")
    level = parser.parse_args().level
    with restore_pair(ready() if level == "ready" else booted()) as pair:
        introduce(pair)
        while (line := read_line()) not in (None, "quit", "exit"):
            execute(pair, line or "")
    return 0


def introduce(pair: Pair) -> None:
    """Print the ssh commands, ports and consoles of the machines."""
    for machine in (pair.give, pair.take):
        ports = ", ".join(
            f"{guest} at 127.0.0.1:{host}" for guest, host in machine.paths.forwards if guest != 22
        )
        login = f"-i {pair.images.ssh_key} -p {machine.forward(22)} root@127.0.0.1"
        print(f"{machine.name}: {SSH} {login}")
        print(f"      ports {ports}; console {machine.paths.console}")
    print(USAGE, end="", flush=True)


def read_line() -> str | None:
    """The next line of input, or None at its end; with a prompt on a terminal."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip() if line else None
    try:
        return input("lab$ ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def execute(pair: Pair, line: str) -> None:
    """Carry out one line; errors are printed and do not stop the machines."""
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
                print(f"{name} is up after {machines[name].power_cut():.0f} s")
            case ["reboot", name] if name in machines:
                print(f"{name} is up after {machines[name].reboot():.0f} s")
            case ["pull" | "plug" as action, name] if name in machines:
                machines[name].link(action == "plug")
            case _:
                print(USAGE, end="")
    except (LabError, KeyboardInterrupt) as error:
        print(error or "interrupted")


def run(machine: Machine, command: str) -> None:
    """Run a shell command in a machine and print its output."""
    result = machine.run("sh", "-c", command, timeout_s=COMMAND_TIMEOUT_S, check=False)
    print(result.stdout + result.stderr, end="", flush=True)
    if result.rc != 0:
        print(f"({machine.name}: exit code {result.rc})")


if __name__ == "__main__":
    sys.exit(main())
