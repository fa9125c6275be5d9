"""Failover by hand between two servers on real ZFS: take has the volume, give its replica."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab.test_fencing import STEP_S, TEST_S, ctl, refusal
from tests.lab.test_replication import HERE, POOL, SERVER, THERE

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

JOIN = "/root/peer.join"
SUM = "dd if=/dev/zvol/{}/data bs=1M count={} iflag=direct status=none | sha256sum"
WRITE = (
    "udevadm settle; dd if=/dev/urandom of=/dev/zvol/{}/data bs=1M count=4 seek={} oflag=direct "
    "conv=notrunc status=none && sync"
)
IMPORT = "zpool list tank2 >/dev/null 2>&1 || zpool import -d /var/tmp tank2"
EXPORTED = """
until ls -d /sys/kernel/config/target/iscsi/iqn.* >/dev/null 2>&1; do sleep 1; done
"""
UNTIL = "until zfsiloctl volume show data --json | grep -q '{}'; do sleep 1; done"


def shown(machine: Machine) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(ctl(machine, "volume", "show", "data", "--json").stdout)
    return told


def sum_of(machine: Machine, root: str, mib: int = 64) -> str:
    """Return the sum of the first part of the volume, as its device has it."""
    command = f"udevadm settle; {SUM.format(root, mib)}"
    return machine.sh(command, timeout_s=STEP_S).stdout.split()[0]


def write(machine: Machine, root: str, at: int) -> None:
    machine.sh(WRITE.format(root, at), timeout_s=STEP_S)


def joined(here: Machine, there: Machine, *, issued_to: str, name: str) -> None:
    """Let a server send to another one, which it calls by a name."""
    address = "10.77.0.1" if there.name == "give" else "10.77.0.2"
    issue = ("pki", "issue", "user", issued_to, "--role", "replica", "--address", address)
    ctl(there, *issue, "--file", JOIN)
    here.put(JOIN, there.get(JOIN), 0o600)
    print(ctl(here, "join", JOIN, "--as", name).stdout)
    for machine in (here, there):
        machine.run("rm", "-f", JOIN)


def delete_snapshots(machine: Machine, volume: str) -> None:
    """Delete all snapshots of a volume."""
    listed = json.loads(ctl(machine, "snapshot", "list", "--json").stdout)["snapshots"]
    for snapshot in listed:
        if snapshot["volume"] == f"volumes/{volume}":
            ctl(machine, "snapshot", "delete", snapshot["id"])


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestFailover:
    """A dead server, its return, and the way back."""

    def test_a_dead_server_and_its_return(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        take.put("/etc/zfsilo/zfsilod.toml", SERVER, 0o644)
        take.sh(POOL, timeout_s=STEP_S)
        ctl(take, "pki", "init")
        take.sh("systemctl enable --now zfsilod-tcp.socket && systemctl restart zfsilod.service")
        joined(take, give, issued_to="take", name="peer")
        joined(give, take, issued_to="peer", name="take")
        name = "$(sed -n s/InitiatorName=//p /etc/iscsi/initiatorname.iscsi)"
        take.sh(f"zfsiloctl host add take --iqn {name}", timeout_s=STEP_S)
        ctl(take, "volume", "create", "data", "128M", "--host", "take")
        write(take, HERE, 0)
        ctl(take, "volume", "replicate", "data", "--to", "peer")
        sent = sum_of(take, HERE)
        ctl(take, "volume", "publish", "data", "take")
        assert "serves data" in refusal(give, "volume", "promote", "data", "--yes")
        write(take, HERE, 8)  # what only the primary has
        only = sum_of(take, HERE)
        take.power_off()
        assert "--primary-is-off" in refusal(give, "volume", "promote", "data", "--yes")
        print(ctl(give, "volume", "promote", "data", "--primary-is-off", "--yes").stdout)
        assert sum_of(give, THERE) == sent
        ctl(give, "volume", "publish", "data", "take")
        ctl(give, "volume", "unpublish", "data", "take")
        write(give, THERE, 16)
        take.power_on()
        take.wait_until_running()
        take.sh(IMPORT, timeout_s=STEP_S)
        take.sh(UNTIL.format('"replica"'), timeout_s=STEP_S)
        listed = json.loads(ctl(take, "volume", "list", "--json").stdout)
        (aside,) = [one for one in listed["volumes"] if one.get("aside_of") == "data"]
        print(ctl(take, "volume", "show", aside["id"]).stdout)
        device = f"/dev/zvol/{aside['dataset']}"
        kept = take.sh(f"udevadm settle; dd if={device} bs=1M count=64 status=none | sha256sum")
        assert kept.stdout.split()[0] == only
        assert not take.sh("ls /sys/kernel/config/target/iscsi 2>/dev/null || true").stdout.strip()
        print(ctl(give, "volume", "replicate", "data", "--to", "take").stdout)
        assert sum_of(take, HERE) == sum_of(give, THERE)

    def test_the_way_back(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        write(give, THERE, 24)
        print(ctl(give, "volume", "demote", "data", "--to", "take", "--yes").stdout)
        assert "replica" in refusal(give, "volume", "publish", "data", "take")
        print(ctl(take, "volume", "promote", "data", "--yes").stdout)
        assert sum_of(take, HERE) == sum_of(give, THERE)
        write(take, HERE, 28)
        print(ctl(take, "volume", "replicate", "data", "--to", "peer").stdout)
        assert sum_of(take, HERE) == sum_of(give, THERE)
        assert shown(give)["replica"]["peer"] == "take"

    def test_a_boot_without_the_peer(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(take, "volume", "publish", "data", "take")
        give.power_off()
        take.power_cut()
        take.wait_until_running()
        take.sh(IMPORT, timeout_s=STEP_S)
        take.sh(UNTIL.format("PEER_SILENT"), timeout_s=STEP_S)
        print(ctl(take, "volume", "show", "data").stdout)
        assert "is not served" in refusal(take, "volume", "publish", "data", "take")
        give.power_on()
        give.wait_until_running()
        take.sh(
            "while zfsiloctl volume show data --json | grep -q PEER_SILENT; do sleep 1; done",
            timeout_s=STEP_S,
        )
        take.sh(EXPORTED, timeout_s=STEP_S)

    def test_the_end(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(take, "volume", "unpublish", "data", "take")
        volumes = json.loads(ctl(take, "volume", "list", "--json").stdout)["volumes"]
        for aside in [volume["id"] for volume in volumes if volume.get("aside_of")]:
            delete_snapshots(take, aside)
            ctl(take, "volume", "delete", aside, "--yes")
        ctl(give, "volume", "delete", "data", "--yes")
        ctl(take, "volume", "replicate", "data", "--to", "peer", "--end")
        delete_snapshots(take, "data")
        ctl(take, "volume", "delete", "data", "--yes")
        for machine, root in ((give, THERE), (take, HERE)):
            left = machine.sh(f"zfs list -H -o name -t all -d 1 {root}").stdout.split()
            assert left == [root]
