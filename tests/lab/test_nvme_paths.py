"""NVMe/TCP under writes on real kernels: several paths, moved portals, new keys."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.test_nvme import LIMITS, LIVE, NVMET, detach, publish, remove
from tests.lab.test_recovery import NAME, PATH, STEP_S, TEST_S, ctl

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

# Overwrites one block, and keeps the number of writes and the longest one in milliseconds.
WRITER = f"""
import os, time
data = os.open("{PATH}/written", os.O_CREAT | os.O_RDWR, 0o600)
seen = os.open("/run/writer", os.O_CREAT | os.O_RDWR, 0o600)
count, longest = 0, 0.0
while True:
    count += 1
    block = b"%020d" % count * 200
    since = time.monotonic()
    os.pwrite(data, block, 0)
    os.fsync(data)
    longest = max(longest, time.monotonic() - since)
    os.pwrite(seen, b"%020d %012d" % (count, longest * 1000), 0)
"""
OF_TARGET = f"{NVMET}/hosts/*zfsilo*/{{dhchap_key,dhchap_ctrl_key}}"
OF_CLIENT = "/sys/class/nvme/*/{dhchap_secret,dhchap_ctrl_secret}"
FIRST, SECOND, THIRD = "10.77.0.1:4420", "10.88.0.1:4420", "10.77.0.9:4420"
PORTALS_FILE = "/etc/zfsilo/zfsilod.toml.d/portals.toml"
DEVICE = "$(ip -o -4 address show to 10.77.0.0/24 | awk '{print $2; exit}')"
# The state and the address of each controller.
PATHS = r"""
for folder in /sys/class/nvme/nvme*; do
    portal=$(tr , '\n' < $folder/address | sed -n 's/^tr[a-z]*=//p' | paste -sd:)
    echo "$(cat $folder/state) $portal"
done | sort
"""
LINKS = f"{NVMET}/ports/*/subsystems/nqn.*"
NUMBERS = "ls -d /sys/class/nvme/nvme*"


def start_writer(take: Machine) -> None:
    """Start the writer on the mounted volume."""
    take.put("/root/writer.py", WRITER.encode(), 0o600)
    take.sh("systemd-run -q --unit=writer python3 /root/writer.py")
    take.sh("until [ -s /run/writer ]; do sleep 0.1; done", timeout_s=STEP_S)


def writes(take: Machine) -> tuple[int, int]:
    """Return the number of writes, and the milliseconds of the longest one."""
    count, longest = map(int, take.sh("cat /run/writer").stdout.split())
    return count, longest


def assert_writing(take: Machine) -> None:
    """Wait until the writer has written twice more: the first may have begun before."""
    count, _longest = writes(take)
    number = "$(cut -c1-20 /run/writer | sed 's/^0*//')"
    take.sh(f"until [ {number} -gt {count + 1} ]; do sleep 0.1; done", timeout_s=STEP_S)


def assert_no_errors(take: Machine) -> None:
    """Check that the writer runs and that the kernel reported no failed I/O."""
    take.sh("systemctl is-active writer")
    assert "I/O error" not in take.sh("dmesg").stdout


def set_portals(give: Machine, *portals: str) -> None:
    """Let the targets of the server listen at these portals."""
    text = f"[server]\nnvme_portals = {json.dumps(portals)}\n"
    give.put(PORTALS_FILE, text.encode(), 0o644)
    give.run("systemctl", "restart", "zfsilod.service", timeout_s=STEP_S)


def wait_for_paths(take: Machine, *paths: str) -> None:
    """Wait until the client has exactly these controllers, as "STATE PORTAL"."""
    wanted = "\n".join(sorted(paths))
    waited = take.sh(f"until [ \"$({PATHS})\" = '{wanted}' ]; do sleep 0.5; done", timeout_s=STEP_S)
    print(f"{', '.join(paths)}: after {waited.seconds:.1f} s")


def keys(machine: Machine, files: str) -> str:
    """Return a digest of the keys in files, which must not be logged."""
    shown = machine.run("bash", "-c", f"cat {files} | sha256sum", timeout_s=STEP_S).stdout
    return hashlib.sha256(shown.encode()).hexdigest()


def refreshed(take: Machine) -> None:
    """Wait for the operation in which the client took new keys."""
    listed = """zfsiloctl operation list --filter 'kind="refresh-secrets"' --json"""
    take.sh(f"until {listed} | grep -q operations/; do sleep 0.5; done", timeout_s=STEP_S)
    (*_older, newest) = json.loads(take.sh(listed).stdout)["operations"]
    ctl(take, "operation", "wait", newest["name"].removeprefix("operations/"))


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestNvmePaths:
    """A volume under writes, whose server has two portals, and then others."""

    def test_it_is_connected_at_both_portals(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        for address in ("10.88.0.1", "10.77.0.9"):
            give.sh(f"ip address add {address}/24 dev {DEVICE}")
        take.sh(f"ip address add 10.88.0.2/24 dev {DEVICE}")
        set_portals(give, FIRST, SECOND)
        publish(give, take)
        wait_for_paths(take, f"live {FIRST}", f"live {SECOND}")
        assert {int(limit) for limit in take.sh(LIMITS).stdout.split()} == {1024}
        assert take.sh("ls /dev/nvme*n* | wc -l").stdout.strip() == "1"
        start_writer(take)
        assert_writing(take)

    def test_a_lost_path_costs_no_error_and_comes_back(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        give.sh(f"ip address del 10.88.0.1/24 dev {DEVICE}")
        wait_for_paths(take, f"live {FIRST}", f"connecting {SECOND}")
        assert f"has lost its path at {SECOND}" in take.sh("zfsiloctl status", check=False).stdout
        assert_writing(take)
        assert_no_errors(take)
        give.sh(f"ip address add 10.88.0.1/24 dev {DEVICE}")
        wait_for_paths(take, f"live {FIRST}", f"live {SECOND}")
        assert "has lost its path" not in take.sh("zfsiloctl status", check=False).stdout
        assert_writing(take)
        print(f"longest write: {writes(take)[1]} ms")

    def test_a_portal_that_appears_takes_the_place_of_another(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        set_portals(give, SECOND, THIRD)
        wait_for_paths(take, f"live {SECOND}", f"live {THIRD}")
        assert_writing(take)
        assert_no_errors(take)

    def test_a_disk_with_one_path_moves_before_its_portal_goes(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        set_portals(give, SECOND)
        wait_for_paths(take, f"live {SECOND}")
        set_portals(give, THIRD)
        wait_for_paths(take, f"live {THIRD}")
        assert give.sh(f"ls -d {LINKS} | wc -l").stdout.strip() == "2", "it stayed meanwhile"
        ctl(give, "volume", "sync", NAME)
        assert give.sh(f"ls -d {LINKS} | wc -l").stdout.strip() == "1"
        assert_writing(take)
        assert_no_errors(take)

    def test_a_lost_path_follows_its_server(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        give.sh(f"ip address del 10.77.0.9/24 dev {DEVICE}")
        set_portals(give, FIRST)
        wait_for_paths(take, f"live {FIRST}")
        assert {int(limit) for limit in take.sh(LIMITS).stdout.split()} == {1024}
        assert_writing(take)
        assert_no_errors(take)

    def test_nothing_is_left_of_the_paths(self, pair: Pair) -> None:
        pair.take.sh("systemctl stop writer")
        detach(pair.take)
        remove(pair.give)
        assert leak_check.leaks(pair) == []


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestNvmeRotation:
    """A volume under writes gets new keys for both directions."""

    def test_a_live_controller_is_replaced_without_a_pause(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        publish(give, take)
        start_writer(take)
        assert_writing(take)
        before, (_count, longest) = keys(give, OF_TARGET), writes(take)
        numbers = take.sh(NUMBERS).stdout
        ctl(give, "rotate-secrets", NAME)
        refreshed(take)
        assert keys(give, OF_TARGET) != before
        assert keys(take, OF_CLIENT) == keys(give, OF_TARGET)
        assert take.sh(NUMBERS).stdout != numbers
        assert len(take.sh(NUMBERS).stdout.split()) == 1
        assert_writing(take)
        assert_no_errors(take)
        print(f"longest write: {longest} ms before, {writes(take)[1]} ms with the rotation")

    def test_a_reset_authenticates_with_the_new_keys(self, pair: Pair) -> None:
        take = pair.take
        take.sh("echo 1 > $(echo /sys/class/nvme/nvme*/reset_controller)", timeout_s=STEP_S)
        take.sh(LIVE, timeout_s=STEP_S)
        assert_writing(take)
        assert_no_errors(take)

    def test_nothing_is_left(self, pair: Pair) -> None:
        assert leak_check.secrets_shown(pair) == []
        pair.take.sh("systemctl stop writer")
        detach(pair.take)
        remove(pair.give)
        assert leak_check.leaks(pair) == []
