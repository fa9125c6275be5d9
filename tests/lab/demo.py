"""`make demo`: the end-to-end scenario on two virtual machines, and a leak check.

python -m tests.lab.demo [iscsi|nvme]
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from tests.lab import leak_check
from tests.lab.conftest import JOURNALS, save_journals
from tests.lab.errors import LabError
from tests.lab.pair import Pair, restore_pair
from tests.lab.scenario import PORTS, Scenario
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from tests.lab.scenario import Transport

UNITS = "journalctl --no-pager -o cat -u 'zfsilo-op-*' -u 'zfsilo-rollback@*' | grep ^Starting"


def main() -> int:
    """Run the scenario; exit 1 if a step fails or something is left behind."""
    parser = argparse.ArgumentParser(prog="tests.lab.demo")
    parser.add_argument("transport", nargs="?", choices=tuple(PORTS), default="iscsi")
    transport = parser.parse_args().transport
    started = time.monotonic()
    with restore_pair(ready()) as pair:
        say(f"two machines are up: give (pool tank) and take ({time.monotonic() - started:.1f} s)")
        before = {machine.name: leak_check.facts(machine) for machine in (pair.give, pair.take)}
        try:
            left = run(pair, before, transport)
        except (AssertionError, LabError) as error:
            save_journals(pair, JOURNALS / "demo")
            say(f"demo: failed: {error}\n(journals of the machines: {JOURNALS / 'demo'})")
            return 1
    for line in left:
        say(f"left behind: {line}")
    if not left:
        say("demo: ok, nothing left behind")
    return 1 if left else 0


def run(
    pair: Pair, before: dict[str, dict[str, object]], transport: Transport = "iscsi"
) -> list[str]:
    """Run the scenario and print its units; return leaks and places that show secrets."""
    scenario = Scenario(pair, lambda line: say(f"  {line}"), transport)
    shown: list[str] = []
    for number, step in enumerate(scenario.steps(), 1):
        say(f"{number:2}. {step}\n")
        if number == 3:  # while secrets are in use
            shown = leak_check.secrets_shown(pair, (scenario.access.key.splitlines()[1],))
    for machine in (pair.give, pair.take):
        say(f"units that ran on {machine.name}:")
        for line in machine.sh(UNITS).stdout.splitlines():
            say(f"  {line.removeprefix('Starting ')}")
    secrets = [f"secret in {place}" for place in shown]
    return [*leak_check.leaks(pair, before), *secrets]


def say(text: str) -> None:
    """Print and flush, also to a pipe."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
