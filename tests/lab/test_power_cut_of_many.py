"""A power cut of give while take has mounted several volumes: each of them goes on.

The exports of one server share their listener. A client whose target is not there yet, when the
listener is up for the first of them, must not lose its disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check

if TYPE_CHECKING:
    from tests.lab.pair import Pair

NAMES = tuple(f"many{number}" for number in range(3))
STEP_S, RECOVERY_S, TEST_S = 180, 300, 1200
WRITE = "dd if=/dev/urandom of=/srv/{0}/blob bs=1M count=2 conv=fsync status=none"
SUM = "echo 3 > /proc/sys/vm/drop_caches; sha256sum /srv/{0}/blob"
GOES_ON = "echo more > /srv/{0}/more; sync /srv/{0}/more; rm /srv/{0}/more"


@pytest.mark.timeout(TEST_S, func_only=True)
@pytest.mark.parametrize("transport", [pytest.param("iscsi", marks=pytest.mark.long), "nvme"])
def test_every_mounted_volume_goes_on(pair: Pair, transport: str) -> None:
    give, take = pair.give, pair.take
    for name in NAMES:
        words = (name, "128M", "--host", "take", "--transport", transport)
        give.run("zfsiloctl", "volume", "create", *words, timeout_s=STEP_S)
        words = (name, f"/srv/{name}", "--server", "give", "--fs-type", "ext4")
        take.run("zfsiloctl", "volume", "attach", *words, timeout_s=STEP_S)
    for name in NAMES:
        take.sh(WRITE.format(name), timeout_s=STEP_S)
    written = [take.sh(SUM.format(name), timeout_s=STEP_S).stdout for name in NAMES]

    print(f"give was up after {give.power_cut():.1f} s")

    for name in NAMES:
        waited = take.sh(GOES_ON.format(name), timeout_s=RECOVERY_S)
        print(f"{name} went on after {waited.seconds:.1f} s more")
    assert [take.sh(SUM.format(name), timeout_s=STEP_S).stdout for name in NAMES] == written

    for name in NAMES:  # all of them first: over NVMe they share the port
        take.run("zfsiloctl", "volume", "detach", name, timeout_s=STEP_S)
    for name in NAMES:
        give.run("zfsiloctl", "volume", "unpublish", name, "--all", timeout_s=STEP_S)
        give.run("zfsiloctl", "volume", "delete", name, "--yes", timeout_s=STEP_S)
    assert leak_check.leaks(pair) == []
