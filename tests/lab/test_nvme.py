"""NVMe/TCP on real kernels: life, growth, outages, fences, reboots, and keys that are not right."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.test_fencing import FAILED, WRITER, orphans, refusal
from tests.lab.test_recovery import (
    CONFIG_PATH,
    NAME,
    PATH,
    RECOVERY_S,
    STEP_S,
    TEST_S,
    UNIT,
    WRITE_MORE,
    ctl,
    read,
    write,
)

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

NVMET = "/sys/kernel/config/nvmet"
LIVE = "until grep -qsx live /sys/class/nvme/*/state; do sleep 0.2; done"
LOST = "while grep -qsx live /sys/class/nvme/*/state; do sleep 0.2; done"
COUNT_CONTROLLERS = "ls /sys/class/nvme | wc -l"
LINKED = f"until ls {NVMET}/ports/*/subsystems/nqn.* >/dev/null 2>&1; do sleep 0.2; done"
LIMITS = "cat /sys/class/nvme/*/nvme*/queue/max_sectors_kb /sys/block/nvme*n*/queue/max_sectors_kb"
# Requests of 8 MiB: without a limit the target fails them, with a limit they are split.
LARGE = (
    f"dd if=/dev/zero of={PATH}/large bs=8M count=16 oflag=direct status=none; sync {PATH}/large"
)
MODES = f"stat -c %a {NVMET}/hosts/*zfsilo*/dhchap_key {NVMET}/hosts/*zfsilo*/dhchap_ctrl_key"
CLIENT_MODES = "stat -c %a /sys/class/nvme/*/dhchap_secret /sys/class/nvme/*/dhchap_ctrl_secret"
ALLOWED = f"ls {NVMET}/subsystems/*/allowed_hosts"
FILE = f"""\
server = "give"
mount_path = "{PATH}"
fs_type = "ext4"
transport = "nvme"
"""
# What another program has made, before zfsilo makes anything.
FOREIGN = f"""
modprobe nvmet nvmet-tcp
mkdir {NVMET}/subsystems/nqn.2014-08.org.example:other {NVMET}/hosts/nqn.2014-08.org.example:host
mkdir {NVMET}/ports/1
cd {NVMET}/ports/1
echo tcp > addr_trtype; echo ipv4 > addr_adrfam
echo 127.0.0.1 > addr_traddr; echo 4421 > addr_trsvcid
ln -s {NVMET}/subsystems/nqn.2014-08.org.example:other subsystems/
"""
TREE = f"cd {NVMET} && find . -type d -o -type l | sort"
OTHER_KEY = "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfhKR:"


def publish(give: Machine, take: Machine) -> None:
    """Create a volume, publish it over NVMe, and mount it."""
    ctl(give, "volume", "create", NAME, "1G", "--host", "take")
    ctl(give, "volume", "publish", NAME, "take", "--transport", "nvme")
    attach(take)


def attach(take: Machine) -> None:
    """Connect and mount the published volume."""
    ctl(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
    ctl(take, "volume", "stage", NAME, "--fs-type", "ext4")
    ctl(take, "volume", "mount", NAME, PATH)


def detach(take: Machine) -> None:
    """Unmount the volume and disconnect it."""
    for words in (("unmount", NAME, PATH), ("unstage", NAME), ("disconnect", NAME)):
        ctl(take, "volume", *words)


def remove(give: Machine, *words: str) -> None:
    """Unpublish the volume and delete it."""
    ctl(give, "volume", "unpublish", NAME, "--all", *words)
    ctl(give, "volume", "delete", NAME, "--yes")


def controllers(machine: Machine) -> int:
    """Return the number of NVMe controllers."""
    return int(machine.sh(COUNT_CONTROLLERS).stdout)


@pytest.mark.timeout(TEST_S, func_only=True)
class TestNvmeLife:
    """One volume from its creation to its deletion, beside objects of another program."""

    before = ""  # the tree of the target

    def test_it_is_mounted_and_written(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        give.sh(FOREIGN)
        TestNvmeLife.before = give.sh(TREE).stdout
        publish(give, take)
        write(take)
        take.sh(LARGE, timeout_s=STEP_S)
        assert {int(limit) for limit in take.sh(LIMITS).stdout.split()} == {1024}
        shown = json.loads(give.run("zfsiloctl", "volume", "show", NAME, "--json").stdout)
        assert shown["publications"][0]["transport"] == "TRANSPORT_NVME"
        assert set(give.sh(MODES).stdout.split()) == {"600"}
        assert set(take.sh(CLIENT_MODES).stdout.split()) == {"600"}

    def test_it_grows_under_its_mount(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        written = read(take)
        ctl(give, "volume", "resize", NAME, "2G")
        ctl(take, "volume", "grow", NAME)
        size = int(take.sh(f"df -B1 --output=size {PATH} | tail -1").stdout)
        assert size > 1.8 * (1 << 30)
        assert read(take) == written

    def test_a_session_refuses_its_end(self, pair: Pair) -> None:
        give = pair.give
        assert "may still be logged in" in refusal(give, "volume", "unpublish", NAME, "take")
        ctl(give, "volume", "sync", NAME)
        ctl(pair.take, "volume", "sync", NAME)

    def test_it_is_attached_again(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        written = read(take)
        detach(take)
        assert controllers(take) == 0
        ctl(give, "volume", "unpublish", NAME, "--all")
        ctl(give, "volume", "publish", NAME, "take", "--transport", "nvme")
        attach(take)
        assert read(take) == written

    def test_what_another_program_made_is_untouched(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        detach(take)
        remove(give)
        assert give.sh(TREE).stdout == TestNvmeLife.before
        assert orphans(give) == orphans(take) == []
        give.sh(f"rm {NVMET}/ports/1/subsystems/*; rmdir {NVMET}/ports/1 {NVMET}/hosts/*")
        give.sh(f"rmdir {NVMET}/subsystems/*")
        assert leak_check.leaks(pair) == []


@pytest.mark.timeout(TEST_S, func_only=True)
class TestNvmeFenced:
    """A volume in use is fenced from its client."""

    def test_writes_fail_and_no_connect_succeeds(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        publish(give, take)
        take.put("/root/writer.py", WRITER.encode(), 0o600)
        take.sh("systemd-run -q --unit=writer python3 /root/writer.py")
        take.sh(f"until [ -s {PATH}/written ]; do sleep 0.1; done", timeout_s=STEP_S)
        ctl(give, "volume", "unpublish", NAME, "take", "--fence", "--grace", "0")
        assert give.sh(f"cd {NVMET} && find hosts ports subsystems -mindepth 1").stdout == ""
        take.sh(LOST, timeout_s=STEP_S)
        waited = take.sh(FAILED, timeout_s=RECOVERY_S)
        print(f"the writer's next write failed after {waited.seconds:.1f} s")

    def test_the_client_detaches_and_nothing_is_left(self, pair: Pair) -> None:
        detach(pair.take)
        assert controllers(pair.take) == 0
        ctl(pair.give, "volume", "delete", NAME, "--yes")
        assert leak_check.leaks(pair) == []


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestNvmePowerCut:
    """The server loses power while a client writes."""

    def test_the_writer_waits_and_goes_on(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        publish(give, take)
        written = write(take)
        take.put("/root/writer.py", WRITER.encode(), 0o600)
        take.sh("systemd-run -q --unit=writer python3 /root/writer.py")
        print(f"give was up after {give.power_cut():.1f} s")
        give.sh(LINKED, timeout_s=RECOVERY_S)
        waited = take.sh(LIVE, timeout_s=RECOVERY_S)
        print(f"take was connected after {waited.seconds:.1f} s more")
        assert read(take) == written
        take.sh(WRITE_MORE, timeout_s=STEP_S)
        take.sh("systemctl is-active writer && systemctl stop writer")
        assert {int(limit) for limit in take.sh(LIMITS).stdout.split()} == {1024}
        detach(take)
        remove(give)
        assert leak_check.leaks(pair) == []


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestNvmeKeys:
    """Keys that differ, in each direction, and a host that is not allowed."""

    @pytest.mark.parametrize("key", ["dhchap_key", "dhchap_ctrl_key"])
    def test_another_key_is_refused(self, pair: Pair, key: str) -> None:
        give, take = pair.give, pair.take
        ctl(give, "volume", "create", NAME, "1G", "--host", "take")
        ctl(give, "volume", "publish", NAME, "take", "--transport", "nvme")
        give.sh(f"printf %s {OTHER_KEY} > $(echo {NVMET}/hosts/*/{key})")
        error = refusal(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        assert "refused" in error
        assert "DHHC" not in error
        assert controllers(take) == 0
        ctl(give, "volume", "sync", NAME)  # it repairs the key
        ctl(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        ctl(take, "volume", "disconnect", NAME)
        remove(give)
        assert leak_check.leaks(pair) == []


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestNvmeReboot:
    """The client reboots; its file of volumes.d names the transport."""

    def test_it_is_mounted_again(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(give, "volume", "create", NAME, "1G", "--host", "take")
        take.put(CONFIG_PATH, FILE.encode(), 0o644)
        take.run("systemctl", "enable", "--now", UNIT, timeout_s=STEP_S)
        assert controllers(take) == 1
        written = write(take)
        print(f"take was up after {take.reboot():.1f} s")
        take.sh(f"until systemctl is-active -q {UNIT}; do sleep 0.2; done", timeout_s=RECOVERY_S)
        assert read(take) == written
        take.run("systemctl", "disable", "--now", UNIT, timeout_s=STEP_S)
        take.run("rm", CONFIG_PATH)
        remove(give, "--fence")
        assert leak_check.leaks(pair) == []
