"""Replication between two servers on real ZFS: take sends its volumes to give."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import leak_check
from tests.lab.test_fencing import STEP_S, TEST_S, ctl, refusal

if TYPE_CHECKING:
    from tests.lab.machine import GuestResult, Machine
    from tests.lab.pair import Pair

MIB = 1 << 20
HERE, THERE = "tank2/zfsilo", "tank/zfsilo"  # on take and on give
SERVER = b"""[server]
root = "tank2/zfsilo"
portals = ["10.77.0.2:3260"]
"""
POOL = """
modprobe zfs
truncate -s 2G /var/tmp/tank2.img
zpool create -O mountpoint=none tank2 /var/tmp/tank2.img
zfs create tank2/zfsilo
systemctl restart zfsilod.service
"""
JOIN = "/root/peer.join"
TOKEN = "zfs get -Hp -o value receive_resume_token {} 2>/dev/null"
BEGUN = f"until {TOKEN} | grep -q ^1-; do sleep 0.2; done"
# The sums of a snapshot, read from a clone.
SUM = """
zfs clone -o readonly=on -o volmode=dev {snapshot} {clone}
udevadm settle
until [ -e /dev/zvol/{clone} ]; do sleep 0.1; done
sha256sum < /dev/zvol/{clone}
for i in $(seq 50); do zfs destroy {clone} 2>/dev/null && break; sleep 0.2; done
"""
PROPERTIES = "readonly,zfsilo:uid,zfsilo:replica,zfsilo:id,receive_resume_token"


class Replicated:
    """A volume of take, and its replica on give."""

    def __init__(self, pair: Pair, name: str) -> None:
        self.give, self.take, self.name = pair.give, pair.take, name
        self.device = f"/dev/zvol/{HERE}/{name}"

    def write(self, mib: int, at: int = 0) -> None:
        """Write random data at an offset."""
        self.take.sh(
            f"udevadm settle; dd if=/dev/urandom of={self.device} bs=1M count={mib} seek={at} "
            "oflag=direct conv=notrunc status=none && sync",
            timeout_s=STEP_S,
        )

    def replicate(self, *words: str) -> GuestResult:
        return ctl(self.take, "volume", "replicate", self.name, "--to", "peer", *words)

    def begin(self, *words: str) -> str:
        """Start a replication without waiting for it; return its operation."""
        started = self.replicate("--no-wait", *words)
        return started.stdout.strip()

    def wait(self, operation: str) -> dict[str, Any]:
        self.take.run("zfsiloctl", "operation", "wait", operation, timeout_s=STEP_S, check=False)
        shown = ctl(self.take, "operation", "show", operation, "--json").stdout
        told: dict[str, Any] = json.loads(shown)
        return told

    def snapshots(self, machine: Machine, root: str) -> dict[str, str]:
        """Return names and guids of the snapshots on a machine."""
        listed = machine.sh(f"zfs list -Hp -o name,guid -t snapshot -d 1 {root}/{self.name}").stdout
        rows = (line.split("\t") for line in listed.splitlines())
        return {name.partition("@")[2]: guid for name, guid in rows}

    def check(self) -> None:
        """Compare the newest snapshot of both: names, guids and content."""
        here, there = self.snapshots(self.take, HERE), self.snapshots(self.give, THERE)
        assert here == there
        ((snapshot, _guid),) = here.items()
        sums = [
            machine.sh(
                SUM.format(snapshot=f"{root}/{self.name}@{snapshot}", clone=f"{root}/sum"),
                timeout_s=STEP_S,
            ).stdout.split()[0]
            for machine, root in ((self.take, HERE), (self.give, THERE))
        ]
        assert sums[0] == sums[1]


def properties(give: Machine, name: str) -> dict[str, list[str]]:
    """Return properties of a replica, with value and source."""
    words = ("zfs", "get", "-Hp", "-o", "property,value,source", PROPERTIES, f"{THERE}/{name}")
    rows = (line.split("\t") for line in give.run(*words).stdout.splitlines())
    return {row[0]: row[1:] for row in rows}


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestReplication:
    """The life of replicas."""

    def test_the_whole_volume_then_what_changed(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        take.put("/etc/zfsilo/zfsilod.toml", SERVER, 0o644)
        take.sh(POOL, timeout_s=STEP_S)
        issue = ("pki", "issue", "user", "take", "--role", "replica", "--address", "give")
        ctl(give, *issue, "--file", JOIN)
        take.put(JOIN, give.get(JOIN), 0o600)
        print(ctl(take, "join", JOIN, "--as", "peer").stdout)
        for machine in (give, take):
            machine.run("rm", "-f", JOIN)
        ctl(take, "volume", "create", "data", "256M")
        volume = Replicated(pair, "data")
        volume.write(64)
        done = volume.replicate()
        print(f"64 MiB: {done.seconds:.1f} s: {done.stdout}")
        volume.check()
        uid = json.loads(ctl(take, "volume", "show", "data", "--json").stdout)["uid"]
        assert properties(give, "data") == {
            "readonly": ["on", "local"],
            "zfsilo:uid": [uid, "local"],
            "zfsilo:replica": ["take", "local"],
            "zfsilo:id": ["data", "local"],
            "receive_resume_token": ["-", "-"],
        }
        volume.write(8, at=20)
        done = volume.replicate()
        print(f"8 MiB more: {done.seconds:.1f} s")
        volume.check()
        for machine in pair.both(lambda machine: machine):
            print(ctl(machine, "volume", "show", "data").stdout)
        assert "replica" in refusal(give, "volume", "publish", "data", "take")
        assert "replicated" in refusal(take, "volume", "delete", "data", "--yes")
        assert ctl(give, "volume", "sync", "data").rc == 0
        assert ctl(give, "orphan", "list", "-q").stdout == ""

    @pytest.mark.parametrize("cut", ["dialer", "sender", "gateway", "receiver", "daemon"])
    def test_a_cut_stream_goes_on(self, pair: Pair, cut: str) -> None:
        give, take = pair.give, pair.take
        volume = Replicated(pair, "data")
        volume.write(24, at=100)
        operation = volume.begin("--rate", "2M")
        give.sh(BEGUN.format(f"{THERE}/data"), timeout_s=STEP_S)
        time.sleep(2)  # some MiB on their way
        print(ctl(take, "operation", "show", operation).stdout)
        machine, command = {
            "dialer": (take, "systemctl kill -s KILL 'zfsilo-dial-*'"),
            "sender": (take, "systemctl kill -s KILL 'zfsilo-send-*'"),
            "gateway": (give, "systemctl kill -s KILL zfsilod-gateway.service"),
            "receiver": (give, "systemctl kill -s KILL 'zfsilo-op-*'"),
            "daemon": (take, "systemctl restart zfsilod.service"),
        }[cut]
        machine.sh(command, timeout_s=STEP_S)
        ended = volume.wait(operation)
        print(cut, ended["state"], ended.get("error", {}))
        assert ended["state"] == "OPERATION_STATE_DONE"
        volume.check()

    def test_a_policy_sends_by_its_timer(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        volume = Replicated(pair, "data")
        volume.write(4, at=130)
        ((before, _guid),) = volume.snapshots(give, THERE).items()
        often = ("often", "--calendar", "*:*:0/20")
        ctl(take, "replication", "create", *often, "--to", "peer", "--volume", "data")
        newer = f"until zfs list -H -o name -t snapshot -d 1 {THERE}/data | grep -qv {before}"
        give.sh(f"{newer}; do sleep 0.5; done", timeout_s=STEP_S)
        ctl(take, "replication", "update", "often", "--calendar", "daily")
        service = "zfsilo-replicate@often.service"
        running = f'[ "$(systemctl show --value --property=ActiveState {service})" = activating ]'
        take.sh(f"while {running}; do sleep 0.5; done", timeout_s=STEP_S)
        take.run("systemctl", "start", service, timeout_s=STEP_S)
        volume.check()
        print(ctl(take, "replication", "show", "often").stdout)
        print(ctl(take, "volume", "show", "data").stdout)
        (known,) = json.loads(ctl(take, "volume", "show", "data", "--json").stdout)["replications"]
        assert known["due_time"] > known["snapshot_time"]
        assert take.sh("systemctl list-timers --all").stdout.count("zfsilo-replicate@often") > 0
        ctl(take, "replication", "delete", "often")

    def test_an_encrypted_volume_is_sent_raw(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(take, "seal-key", "--yes")
        ctl(take, "volume", "create", "secret", "64M", "--encrypt")
        volume = Replicated(pair, "secret")
        volume.write(8)
        volume.replicate()
        volume.write(4, at=16)
        volume.replicate()
        assert volume.snapshots(take, HERE) == volume.snapshots(give, THERE)
        words = ("zfs", "get", "-H", "-o", "value", "encryption,keystatus", f"{THERE}/secret")
        assert give.run(*words).stdout.split() == ["aes-256-gcm", "unavailable"]

    def test_a_replica_is_rescued_and_deleted(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        volume = Replicated(pair, "data")
        ((snapshot, _guid),) = volume.snapshots(give, THERE).items()
        give.run("zfs", "clone", f"{THERE}/data@{snapshot}", f"{THERE}/rescued")
        ctl(give, "adopt", f"{THERE}/rescued")
        ctl(give, "volume", "publish", "rescued", "take")
        assert "rescued" in refusal(give, "volume", "delete", "data", "--yes")
        ctl(give, "volume", "unpublish", "rescued", "take")
        ctl(give, "volume", "delete", "rescued", "--yes")
        for name in ("data", "secret"):
            ctl(give, "volume", "delete", name, "--yes")
            ctl(take, "volume", "replicate", name, "--to", "peer", "--end")
            ctl(take, "volume", "delete", name, "--yes")
        for machine, root in ((give, THERE), (take, HERE)):
            left = machine.sh(f"zfs list -H -o name -t all -d 1 {root}").stdout.split()
            assert left == [root]
            assert not machine.sh("ls /run/zfsilo/op | grep -v sock || true").stdout
            units = "systemctl list-units --all --no-legend 'zfsilo-send-*' 'zfsilo-dial-*'"
            assert not machine.sh(units).stdout
        assert leak_check.leaks(pair) == []
