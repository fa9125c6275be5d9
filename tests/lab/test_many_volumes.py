"""100 volumes of one client: a power cut of the server, restarts of both daemons, nothing left.

They are made, connected and removed by requests, and counted in configfs and sysfs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bench.machines import ask, look, prepare
from tests.lab import leak_check

if TYPE_CHECKING:
    from tests.lab.pair import Pair

COUNT = 100
ALL_S, RECOVERY_S, TEST_S = 1200, 600, 3600


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
@pytest.mark.parametrize("transport", ["iscsi", "nvme"])
def test_all_come_back_and_nothing_is_left(pair: Pair, transport: str) -> None:
    give, take = pair.give, pair.take
    prepare(pair)
    many = str(COUNT)
    made_s = ask(give, "fill", many, transport, timeout_s=ALL_S)
    connected_s = ask(take, "connect", many, timeout_s=ALL_S)
    print(
        f"{COUNT} volumes over {transport}: made in {made_s:.0f}, connected in {connected_s:.0f} s"
    )
    look(take, "connected", many, transport)
    assert len(look(take, "disks", transport)) == COUNT
    assert look(take, "mark", transport, timeout_s=RECOVERY_S) == COUNT

    print(f"give was up after {give.power_cut():.0f} s")
    exported_s = look(give, "exported", many, transport, timeout_s=RECOVERY_S)
    print(f"all were exported {exported_s:.0f} s after the start of the kernel")
    look(take, "connected", many, transport, timeout_s=RECOVERY_S)
    assert look(take, "marked", transport, timeout_s=RECOVERY_S) == COUNT

    for machine in (give, take):
        machine.run("systemctl", "restart", "zfsilod.service", timeout_s=RECOVERY_S)
        machine.run("zfsiloctl", "volume", "sync", "--all", timeout_s=RECOVERY_S)
    look(give, "exported", many, transport)
    look(take, "connected", many, transport)
    assert look(take, "marked", transport, timeout_s=RECOVERY_S) == COUNT

    disconnected_s = ask(take, "disconnect", many, timeout_s=ALL_S)
    look(take, "connected", "0", transport)
    assert look(take, "disks", transport) == {}
    removed_s = ask(give, "empty", many, timeout_s=ALL_S)
    print(f"disconnected in {disconnected_s:.0f}, removed in {removed_s:.0f} s")
    assert leak_check.leaks(pair) == []
