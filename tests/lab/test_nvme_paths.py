"""NVMe/TCP under writes on real kernels: new keys for a live controller."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.test_nvme import LIVE, NVMET, detach, publish, remove
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
