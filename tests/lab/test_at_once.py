"""Changes that are asked at the same time, and share units, over real ZFS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lab import leak_check
from tests.lab.test_fencing import STEP_S

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

COUNT = 12
UNITS = "journalctl -q -o cat | grep -o 'zfsilo-op-[^ ]*\\.service' | sort -u | wc -l"


def at_once(machine: Machine, command: str) -> None:
    """Run a command of zfsiloctl for each of COUNT volumes at the same time; NUMBER is its."""
    script = f"seq {COUNT} | xargs -P {COUNT} -I NUMBER zfsiloctl {command}"
    machine.sh(script, timeout_s=STEP_S)


class TestAtOnce:
    """More volumes than the server starts units for."""

    def test_volumes_snapshots_and_clones_are_made_and_deleted(self, pair: Pair) -> None:
        give = pair.give
        before = int(give.sh(UNITS).stdout)
        at_once(give, "volume create volume-NUMBER 16M")
        units = int(give.sh(UNITS).stdout) - before
        assert 0 < units < COUNT  # else no two of them shared a unit, and nothing was shown
        at_once(give, "snapshot create volume-NUMBER snapshot-NUMBER")
        at_once(give, "volume create clone-NUMBER --from-snapshot snapshot-NUMBER")
        at_once(give, "volume resize volume-NUMBER 32M")
        give.run("zfsiloctl", "volume", "sync", "--all", timeout_s=STEP_S)
        at_once(give, "volume delete clone-NUMBER --yes")
        at_once(give, "snapshot delete snapshot-NUMBER")
        at_once(give, "volume delete volume-NUMBER --yes")
        assert leak_check.leaks(pair) == []
