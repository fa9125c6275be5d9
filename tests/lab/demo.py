"""`make demo`: the main job on two virtual machines, step by step, and what it left behind."""

from __future__ import annotations

import sys
import time

from tests.lab import oracle
from tests.lab.conftest import JOURNALS, save_journals
from tests.lab.errors import LabError
from tests.lab.pair import Pair, restore_pair
from tests.lab.snapshots import ready
from tests.lab.story import Story

UNITS = "journalctl --no-pager -o cat -u 'zfsilo-op-*' -u 'zfsilo-rollback@*' | grep ^Starting"


def main() -> int:
    """Tell the story; exit 0 when nothing was left behind, 1 when something was or failed."""
    begun = time.monotonic()
    with restore_pair(ready()) as pair:
        say(f"two machines are up: give (pool tank) and take ({time.monotonic() - begun:.1f} s)")
        before = {machine.name: oracle.facts(machine) for machine in (pair.give, pair.take)}
        try:
            left = tell(pair, before)
        except (AssertionError, LabError) as error:
            save_journals(pair, JOURNALS / "demo")
            say(f"demo: failed: {error}\n(the machines' journals are in {JOURNALS / 'demo'})")
            return 1
    for line in left:
        say(f"left behind: {line}")
    if not left:
        say("demo: ok, nothing left behind")
    return 1 if left else 0


def tell(pair: Pair, before: dict[str, dict[str, object]]) -> list[str]:
    """Tell the story, then the units that ran; return what is left."""
    story = Story(pair, lambda line: say(f"  {line}"))
    shown: list[str] = []
    for number, step in enumerate(story.steps(), 1):
        say(f"{number:2}. {step}\n")
        if number == 3:  # while secrets are in use
            shown = oracle.secrets_shown(pair, (story.access.key.splitlines()[1],))
    for machine in (pair.give, pair.take):
        say(f"units that ran on {machine.name}:")
        for line in machine.sh(UNITS).stdout.splitlines():
            say(f"  {line.removeprefix('Starting ')}")
    secrets = [f"a secret shows in {place}" for place in shown]
    return [*oracle.leaks(pair, before), *secrets]


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
