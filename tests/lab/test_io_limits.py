"""Limits of the I/O of volumes over iSCSI, with real kernels: counts of io.stat on the server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.test_fencing import NAME, STEP_S, TEST_S, ctl, refusal
from tests.lab.test_recovery import EXPORTED, LOGGED_IN, RECOVERY_S

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

MIB = 1 << 20
UNIT = "/sys/fs/cgroup/zfsilo.slice/zfsilo-limits.service"
GROUP = f"{UNIT}/volumes"
DISK = "/dev/sd?"  # the only one of take
SECONDS = 20
# What the kernel counts a second for the only device of a group, from the first I/O on.
COUNT = f"""
import json, sys, time
def figures():
    (line,) = (line.split() for line in open(sys.argv[1]))
    return {{key: int(value) for key, value in (pair.split("=") for pair in line[1:])}}
idle = figures()
while idle == figures():
    time.sleep(0.1)
began, before = time.monotonic(), figures()
time.sleep({SECONDS})
took, after = time.monotonic() - began, figures()
print(json.dumps({{key: (after[key] - before[key]) / took for key in after}}))
"""
LOAD = (
    "systemd-run -q --collect --unit=load fio --name=load --filename=$(ls {disk}) --rw={how} "
    "--bs={block} --iodepth=8 --ioengine=libaio --direct=1 --time_based --runtime=600 --size=48M"
)
# Where the threads of sessions are: a line for each.
THREADS = "for id in $(pgrep -x 'iscsi_(trx|ttx)'); do cat /proc/$id/cgroup; done"
INSIDE = f"until [ $(cat {GROUP}/cgroup.procs | wc -l) = 2 ]; do sleep 0.1; done"


def rates(give: Machine) -> dict[str, float]:
    """Return what the kernel counted in the group, a second."""
    counted = give.run("python3", "/root/count.py", f"{GROUP}/io.stat", timeout_s=STEP_S).stdout
    print(counted)
    figures: dict[str, float] = json.loads(counted)
    return figures


def load(take: Machine, how: str, block: str) -> None:
    """Start to read or write the disk as fast as possible."""
    take.run("systemctl", "stop", "load", check=False)
    take.sh(LOAD.format(disk=DISK, how=how, block=block), timeout_s=STEP_S)


def within_a_fifth(rate: float, limit: float) -> bool:
    """Tell whether a rate is that of a limit, within 20 %."""
    return 0.8 * limit <= rate <= 1.2 * limit


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestLimits:
    """The limits of one volume, from the first to the last."""

    def test_a_limit_from_the_creation_on(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        give.put("/root/count.py", COUNT.encode(), 0o600)
        create = ("volume", "create", NAME, "64M", "--block", "--host", "take")
        ctl(give, *create, "--limit-read-iops", "10")
        ctl(give, "volume", "publish", NAME, "take")
        print(give.sh(f"cat {GROUP}/io.max; {THREADS}; systemctl status zfsilo-limits").stdout)
        ctl(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        waited = give.sh(INSIDE, timeout_s=STEP_S)
        print(f"the threads of the session were in the group {waited.seconds:.1f} s later")
        load(take, "randread", "4k")
        assert within_a_fifth(rates(give)["rios"], 10)

    def test_a_limit_is_changed_under_load(self, pair: Pair) -> None:
        ctl(pair.give, "volume", "update", NAME, "--limit-read-iops", "20")
        assert within_a_fifth(rates(pair.give)["rios"], 20)

    def test_a_limit_of_bytes(self, pair: Pair) -> None:
        give = pair.give
        ctl(give, "volume", "update", NAME, "--limit-read-iops", "0", "--limit-write-bytes", "2M")
        print(give.sh(f"cat {GROUP}/io.max").stdout)
        load(pair.take, "randwrite", "256k")
        assert within_a_fifth(rates(give)["wbytes"], 2 * MIB)

    def test_a_new_session_is_limited_too(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        take.sh("systemctl stop load")
        ctl(take, "volume", "disconnect", NAME)
        give.sh(f'until [ -z "$(cat {GROUP}/cgroup.procs)" ]; do sleep 0.1; done')
        ctl(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        waited = give.sh(INSIDE, timeout_s=STEP_S)
        print(f"the threads of the session were in the group {waited.seconds:.1f} s later")
        load(take, "randwrite", "256k")
        assert within_a_fifth(rates(give)["wbytes"], 2 * MIB)
        ctl(give, "volume", "probe", NAME)

    def test_limits_are_back_after_a_power_cut(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        take.sh("systemctl stop load")
        print(f"give was up after {give.power_cut():.1f} s")
        give.sh(EXPORTED, timeout_s=RECOVERY_S)
        take.sh(LOGGED_IN, timeout_s=RECOVERY_S)
        give.sh(INSIDE, timeout_s=RECOVERY_S)
        give.put("/root/count.py", COUNT.encode(), 0o600)
        load(take, "randwrite", "256k")
        assert within_a_fifth(rates(give)["wbytes"], 2 * MIB)

    def test_a_volume_over_nvme_has_no_limits(self, pair: Pair) -> None:
        words = ("volume", "create", "other", "64M", "--transport", "nvme")
        assert "use iscsi" in refusal(pair.give, *words, "--limit-read-iops", "10")

    def test_the_last_limit_takes_the_group_along(self, pair: Pair) -> None:
        give = pair.give
        ctl(give, "volume", "update", NAME, "--limit-write-bytes", "0")
        assert give.run("test", "-e", UNIT, check=False).rc != 0
        assert set(give.sh(THREADS).stdout.split()) == {"0::/"}
        assert give.run("systemctl", "is-active", "zfsilo-limits", check=False).rc != 0

    def test_nothing_is_left(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        take.sh("systemctl stop load")
        ctl(give, "volume", "update", NAME, "--limit-read-bytes", "4M")
        ctl(take, "volume", "disconnect", NAME)
        ctl(give, "volume", "unpublish", NAME, "take")
        assert give.run("test", "-e", UNIT, check=False).rc != 0
        ctl(give, "volume", "delete", NAME, "--yes")
        assert leak_check.leaks(pair) == []
