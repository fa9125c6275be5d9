"""Names and addresses that change: the server's host name, and the address of its portals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.test_recovery import PATH, RECOVERY_S, STEP_S, TEST_S, ctl, read, remove, write

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

NAME = "data"
OTHER = "10.77.0.9"
TARGETS = "ls -d /sys/kernel/config/target/iscsi/iqn.*"
# The address moves, as with a new network. With its first address the kernel may remove the others
# of a network (promote_secondaries in ip-sysctl), so the other one is set again.
MOVE = f"""
device=$(ip -o -4 address show to 10.77.0.1 | awk '{{print $2; exit}}')
ip address add {OTHER}/24 dev "$device"
sed -i 's/10.77.0.1:/10.77.0.9:/' /etc/zfsilo/zfsilod.toml
systemctl restart zfsilod.service
zfsiloctl volume sync data
ip address delete 10.77.0.1/24 dev "$device"
ip address replace {OTHER}/24 dev "$device"
"""
BACK = """
device=$(ip -o -4 address show to 10.77.0.9 | awk '{print $2; exit}')
ip address add 10.77.0.1/24 dev "$device"
sed -i 's/10.77.0.9:/10.77.0.1:/' /etc/zfsilo/zfsilod.toml
systemctl restart zfsilod.service
ip address delete 10.77.0.9/24 dev "$device"
ip address replace 10.77.0.1/24 dev "$device"
"""
RENAME = "echo {name} > /proc/sys/kernel/hostname; systemctl restart zfsilod.service"
NAMED = "sed -i -e '/ give$/d' /etc/hosts && echo '{address} give' >> /etc/hosts"
FOLLOWED = f"""
until grep -qx {OTHER} /sys/class/iscsi_connection/connection*/persistent_address &&
      grep -qx LOGGED_IN /sys/class/iscsi_session/session*/state
do sleep 0.5; done
"""


def attach(pair: Pair) -> None:
    ctl(pair.give, "volume", "create", NAME, "1G", "--host", "take")
    ctl(pair.take, "volume", "connect", NAME, "--server", "give")
    ctl(pair.take, "volume", "stage", NAME, "--fs-type", "ext4")
    ctl(pair.take, "volume", "mount", NAME, PATH)


def detach(pair: Pair) -> None:
    ctl(pair.take, "volume", "unmount", NAME, PATH)
    ctl(pair.take, "volume", "unstage", NAME)
    ctl(pair.take, "volume", "disconnect", NAME)


def names(give: Machine) -> list[str]:
    return give.sh(TARGETS).stdout.split()


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestHostName:
    """The host name of the server changes while a client uses a volume."""

    def test_the_export_keeps_its_name_and_a_fence_ends_it(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        attach(pair)
        written, before = write(take), names(give)
        give.sh(
            "echo nas > /proc/sys/kernel/hostname; systemctl restart zfsilod.service",
            timeout_s=STEP_S,
        )
        ctl(give, "volume", "sync", NAME)
        assert names(give) == before
        assert "the host name is nas" in give.sh("zfsiloctl status", timeout_s=STEP_S).stdout
        assert "BAD host name" in give.sh("zfsiloctl doctor || true", timeout_s=STEP_S).stdout
        assert read(take) == written

        ctl(give, "volume", "unpublish", NAME, "--all", "--fence")
        assert give.sh(f"{TARGETS} 2>/dev/null || true").stdout == ""
        ctl(take, "volume", "disconnect", NAME, "--force")
        give.sh(
            "echo give > /proc/sys/kernel/hostname; systemctl restart zfsilod.service",
            timeout_s=STEP_S,
        )
        ctl(give, "volume", "delete", NAME, "--yes")
        assert leak_check.leaks(pair) == []


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestAddress:
    """The server moves to another address while a client writes to a volume."""

    def test_the_session_follows_with_its_mount(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        attach(pair)
        written = write(take)
        give.sh(MOVE, timeout_s=STEP_S)
        take.sh(NAMED.format(address=OTHER))
        waited = take.sh(FOLLOWED, timeout_s=RECOVERY_S)
        print(f"the session followed after {waited.seconds:.1f} s")
        assert read(take) == written
        take.sh(f"echo more > {PATH}/more; sync {PATH}/more; rm {PATH}/more", timeout_s=STEP_S)
        assert "nothing needs attention" in take.sh("zfsiloctl status", timeout_s=STEP_S).stdout

        detach(pair)
        remove(give)
        give.sh(BACK, timeout_s=STEP_S)
        take.sh(NAMED.format(address="10.77.0.1"))
        assert leak_check.leaks(pair) == []
