"""Streams of replication that are cut in their middle, 20 times: processes, network, power.

The seed is printed, and ZFSILO_SEED sets it. After each cut the operation, or the one of the next
call, ends well; both servers then have the same snapshot, with equal guids and sums.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.power_cuts import ended
from tests.lab.test_fencing import STEP_S, TEST_S, ctl
from tests.lab.test_replication import BEGUN, HERE, JOIN, POOL, SERVER, THERE, Replicated

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

SEED = int(os.environ.get("ZFSILO_SEED") or random.SystemRandom().randrange(1 << 32))
CUTS = {  # how often; a power cut costs a boot
    "dialer": 2,
    "sender": 2,
    "gateway": 2,
    "receiver": 2,
    "daemon here": 2,
    "daemon there": 2,
    "network": 4,
    "power here": 2,
    "power there": 2,
}
UNITS = {
    "dialer": "zfsilo-dial-*",
    "sender": "zfsilo-send-*",
    "gateway": "zfsilod-gateway.service",
    "receiver": "zfsilo-op-*",
    "daemon here": "zfsilod.service",
    "daemon there": "zfsilod.service",
}
ON_TAKE = ("dialer", "sender", "daemon here")
VOLUME_MIB, WRITTEN_MIB = 96, 24
MAX_DELAY_S = 8.0  # from the first bytes on the peer to the cut: a stream takes 12 s or more
MAX_OUTAGE_S = 90.0  # longer than the connection lives without its peer
TRIES = 3  # further calls, after an operation that used up its attempts
RATE = ("--rate", "2M")
# The pool of take is in a file, which may not be imported at the boot.
IMPORTED = """
zpool list tank2 >/dev/null 2>&1 || zpool import -d /var/tmp tank2
until zfsiloctl info >/dev/null 2>&1; do sleep 0.5; done
"""


def plan(seed: int) -> list[tuple[str, int]]:
    """Return the cuts in their order, each with a seed of its own."""
    dice = random.Random(seed)
    kinds = [kind for kind, count in CUTS.items() for _time in range(count)]
    dice.shuffle(kinds)
    return [(kind, dice.randrange(1 << 32)) for kind in kinds]


def cut(pair: Pair, kind: str, dice: random.Random) -> None:
    """Cut the stream that runs, and end the cause of it."""
    give, take = pair.give, pair.take
    if kind in UNITS:
        machine = take if kind in ON_TAKE else give
        machine.sh(f"systemctl kill -s KILL '{UNITS[kind]}' || true", timeout_s=STEP_S)
    elif kind == "network":
        machine = dice.choice((give, take))
        machine.link(up=False)
        time.sleep(dice.uniform(1, MAX_OUTAGE_S))
        machine.link(up=True)
    else:
        machine = take if kind == "power here" else give
        print(f"{machine.name} was up after {machine.power_cut():.0f} s")
    take.sh(IMPORTED, timeout_s=STEP_S)


def until_done(take: Machine, replicate: Callable[[], str]) -> int:
    """Wait for the end of the operation that was cut, and replicate until it succeeds."""
    assert ended(take) == []
    for tries in range(TRIES + 1):
        problem = replicate()
        if not problem:
            return tries
        print(problem)
        assert ended(take) == []
    raise AssertionError(f"no replication in {TRIES + 1} calls")


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestCuts:
    """One volume, one replica, and all cuts."""

    def test_the_whole_volume(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        print(f"ZFSILO_SEED={SEED}")
        take.put("/etc/zfsilo/zfsilod.toml", SERVER, 0o644)
        take.sh(POOL, timeout_s=STEP_S)
        issue = ("pki", "issue", "user", "take", "--role", "replica", "--address", "give")
        ctl(give, *issue, "--file", JOIN)
        take.put(JOIN, give.get(JOIN), 0o600)
        ctl(take, "join", JOIN, "--as", "peer")
        ctl(take, "volume", "create", "data", f"{VOLUME_MIB}M")
        volume = Replicated(pair, "data")
        volume.write(WRITTEN_MIB)
        volume.replicate()
        volume.check()

    @pytest.mark.parametrize("number", range(sum(CUTS.values())))
    def test_a_stream_that_is_cut(self, pair: Pair, number: int) -> None:
        give, take = pair.give, pair.take
        kind, seed = plan(SEED)[number]
        print(f"ZFSILO_SEED={SEED}: {kind}")
        dice = random.Random(seed)
        volume = Replicated(pair, "data")
        volume.write(WRITTEN_MIB, at=dice.randrange(VOLUME_MIB - WRITTEN_MIB))
        operation = volume.begin(*RATE)
        give.sh(BEGUN.format(f"{THERE}/data"), timeout_s=STEP_S)
        time.sleep(dice.uniform(0, MAX_DELAY_S))
        cut(pair, kind, dice)
        again = ("zfsiloctl", "volume", "replicate", "data", "--to", "peer")

        def replicate() -> str:
            done = take.run(*again, timeout_s=STEP_S, check=False)
            return "" if done.rc == 0 else done.stderr

        tries = until_done(take, replicate)
        state = take.run("zfsiloctl", "operation", "show", operation, check=False).stdout
        print(f"{kind}: {tries} failed calls after it; the operation that was cut:\n{state}")
        volume.check()

    def test_nothing_is_left(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(take, "volume", "replicate", "data", "--to", "peer", "--end")
        ctl(take, "volume", "delete", "data", "--yes")
        ctl(give, "volume", "delete", "data", "--yes")
        for machine, root in ((give, THERE), (take, HERE)):
            assert machine.sh(f"zfs list -H -o name -t all -d 1 {root}").stdout.split() == [root]
            units = "systemctl list-units --all --no-legend 'zfsilo-send-*' 'zfsilo-dial-*'"
            assert not machine.sh(units).stdout
        assert leak_check.leaks(pair) == []
