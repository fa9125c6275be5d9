"""The end-to-end scenario on two machines, by zfsiloctl, D-Bus and gRPC; for the demo and a test.

Each step asserts its result and then yields a description of what was done.
"""

from __future__ import annotations

import json
import shlex
import time
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import volume_pb2 as pb

from tests.channel import tls_channel
from zfsilod.api.dbus.contract import unescape
from zfsilod.security.join_file import parse_join
from zfsilod.wire.stub import Api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Literal

    from tests.lab.machine import GuestResult, Machine
    from tests.lab.pair import Pair
    from zfsilod.security.join_file import Access

    Transport = Literal["iscsi", "nvme"]

GIB = 1 << 30
NAME = "demo"
PATH = "/srv/demo"
BLOB_MIB = 64
COUNT_TARGETS = (
    "ls /sys/kernel/config/target/iscsi /sys/kernel/config/nvmet/subsystems 2>/dev/null"
    " | grep -c '^[in]qn' || true"
)
SESSIONS = "ls -d /sys/class/iscsi_session/session* /sys/class/nvme/nvme* 2>/dev/null || true"
PORTS = {"iscsi": 3260, "nvme": 4420}
AUTHENTICATION = {"iscsi": "mutual CHAP", "nvme": "DH-HMAC-CHAP both ways"}
OBJECT = f"/org/zfsilo1/volume/{NAME}"
DEADLINE_S = 120
ATTACH_CONFIG = f"""\
server = "give"
mount_path = "{PATH}"
fs_type = "ext4"
"""
# Occupies the portal's port, as another target program may.
SQUATTER = """
import socket, time
squatter = socket.create_server(("10.77.0.1", {port}))
time.sleep(600)
"""


class Scenario:
    """The two machines, access to them by each interface, and the steps."""

    def __init__(
        self, pair: Pair, log: Callable[[str], None], transport: Transport = "iscsi"
    ) -> None:
        self.transport = transport
        self.give = pair.give
        self.take = pair.take
        self.log = log
        self.access = self._access()
        self.api = Api(tls_channel(self.access))

    def steps(self) -> Iterator[str]:
        """Run the scenario; yield a description of each step that was done."""
        yield from self._create_and_mount()
        yield from self._detach_and_attach()
        yield from self._grow()
        yield from self._volume_unit()
        yield from self._rollback()
        yield from self._delete()

    def ctl(self, machine: Machine, *words: str) -> str:
        """Run zfsiloctl on a machine and log it."""
        return self._shown(machine, "zfsiloctl", *words)

    def bus(self, machine: Machine, member: str, signature: str, *words: str) -> None:
        """Call a method of the volume's D-Bus object on a machine, and wait for its operation."""
        interface = ("org.zfsilo1", OBJECT, "org.zfsilo1.Volume")
        answer = self._shown(machine, "busctl", "call", *interface, member, signature, *words)
        operation = unescape(answer.split('"')[1].rpartition("/")[2])
        machine.run("zfsiloctl", "operation", "wait", operation, timeout_s=DEADLINE_S)

    def grpc(self, method: str, request: Any) -> Any:
        """Call a method of give's VolumeService over TLS, from outside the machines."""
        started = time.monotonic()
        answer = getattr(self.api.volumes, method)(request, timeout=DEADLINE_S)
        self.log(f"grpc  give# {method}  ({time.monotonic() - started:.1f} s)")
        return answer

    def _access(self) -> Access:
        """Issue a certificate for an administrator outside the machines."""
        words = ("pki", "issue", "user", NAME, "--role", "admin", "--file", "-")
        join = self.give.run("zfsiloctl", *words, timeout_s=DEADLINE_S).stdout
        access = parse_join(join)
        access.address = f"127.0.0.1:{self.give.forward(9750)}"
        return access

    def _shown(self, machine: Machine, *argv: str) -> str:
        done = machine.run(*argv, timeout_s=DEADLINE_S)
        self.log(f"{machine.name}# {shlex.join(argv)}  ({done.seconds:.1f} s)")
        for line in (done.stdout + done.stderr).splitlines():
            self.log(f"    {line}")
        return done.stdout

    def _sh(self, machine: Machine, text: str) -> GuestResult:
        done = machine.sh(text, timeout_s=DEADLINE_S)
        self.log(f"{machine.name}# {text}  ({done.seconds:.1f} s)")
        for line in done.stdout.splitlines():
            self.log(f"    {line}")
        return done

    def _create_and_mount(self) -> Iterator[str]:
        transport = {"iscsi": pb.TRANSPORT_ISCSI, "nvme": pb.TRANSPORT_NVME}[self.transport]
        volume = pb.Volume(
            capacity_bytes=GIB,
            thin=True,
            mode=pb.MODE_FILESYSTEM,
            hosts=["take"],
            transport=transport,
        )
        request = pb.CreateVolumeRequest(volume_id=NAME, volume=volume)
        created = self.grpc("CreateVolume", request).volume
        assert created.capacity_bytes == GIB
        assert created.dataset == f"tank/zfsilo/{NAME}"
        yield "created: a 1 GiB sparse zvol on give (gRPC)"
        self.bus(self.give, "Publish", "sa{sv}", "take", "0")
        yield f"published to take, with {AUTHENTICATION[self.transport]} (D-Bus)"
        self._attach()
        yield "connected, staged (ext4) and mounted on take (zfsiloctl, D-Bus)"
        self._sh(
            self.take,
            f"dd if=/dev/urandom of={PATH}/blob bs=1M count={BLOB_MIB} conv=fsync status=none; "
            f"sha256sum {PATH}/blob > /root/blob.sum",
        )
        self._check_data()
        yield f"{BLOB_MIB} MiB written, synced and read back"

    def _attach(self) -> None:
        self.ctl(self.take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        self.bus(self.take, "Stage", "sa{sv}", "", "1", "fs_type", "s", "ext4")
        self.ctl(self.take, "volume", "mount", NAME, PATH)

    def _detach(self) -> None:
        self.ctl(self.take, "volume", "unmount", NAME, PATH)
        self.bus(self.take, "Unstage", "sa{sv}", "", "0")
        self.bus(self.take, "Disconnect", "a{sv}", "0")

    def _check_data(self) -> None:
        self._sh(self.take, "echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /root/blob.sum")

    def _detach_and_attach(self) -> Iterator[str]:
        self._detach()
        request = pb.UnpublishVolumeRequest(name=f"volumes/{NAME}", all_hosts=True)
        self.grpc("UnpublishVolume", request)
        assert self._sh(self.give, COUNT_TARGETS).stdout == "0\n"
        yield "unmounted, disconnected and unpublished: no target, no session, no mount is left"
        self.ctl(self.give, "volume", "publish", NAME, "take")
        self._attach()
        self._check_data()
        yield "published, connected and mounted again: the checksums match"

    def _grow(self) -> Iterator[str]:
        grown = pb.Volume(name=f"volumes/{NAME}", capacity_bytes=2 * GIB)
        request = pb.UpdateVolumeRequest(volume=grown)
        request.update_mask.paths.append("capacity_bytes")
        self.grpc("UpdateVolume", request)
        self.ctl(self.take, "volume", "grow", NAME)
        size = int(self._sh(self.take, f"df -B1 --output=size {PATH} | tail -1").stdout)
        assert size > 1.8 * GIB, f"df shows {size} bytes"
        self._check_data()
        self._sh(self.take, f"df -h {PATH}")
        yield "grown to 2 GiB while mounted"
        stats = json.loads(self.ctl(self.take, "volume", "stats", NAME, "--json"))
        assert int(stats["filesystem_total_bytes"]) == size
        yield "statistics agree with df"

    def _volume_unit(self) -> Iterator[str]:
        self.take.put(f"/etc/zfsilo/volumes.d/{NAME}.toml", ATTACH_CONFIG.encode(), 0o644)
        unit = f"zfsilo-volume@{NAME}"
        self._sh(self.take, f"systemctl start {unit}; systemctl stop {unit}")
        assert self._sh(self.take, SESSIONS).stdout == ""
        self._sh(self.take, f"systemctl start {unit}; systemctl status --no-pager -n0 {unit}")
        self._check_data()
        yield f"detached and attached again by systemctl stop and start {unit}"
        self._sh(self.take, f"systemctl stop {unit}; rm /etc/zfsilo/volumes.d/{NAME}.toml")
        self.ctl(self.give, "volume", "unpublish", NAME, "--all")
        yield "stopped by its unit, and unpublished"

    def _rollback(self) -> Iterator[str]:
        port = PORTS[self.transport]
        self.give.put("/root/squatter.py", SQUATTER.format(port=port).encode(), 0o600)
        self.give.sh("systemd-run -q --unit=squatter python3 /root/squatter.py")
        self.give.sh(f"until ss -Hltn 'sport = :{port}' | grep -q {port}; do sleep 0.1; done")
        refused = self.give.run(
            "zfsiloctl", "volume", "publish", NAME, "take", check=False, timeout_s=DEADLINE_S
        )
        self.log(f"give# zfsiloctl volume publish {NAME} take    -> exit code {refused.rc}")
        self.log(f"    {refused.stderr.strip()}")
        assert refused.rc != 0, "the publication did not fail"
        listed = json.loads(
            self.give.run("zfsiloctl", "operation", "list", "--json", timeout_s=60).stdout
        )
        operation = listed["operations"][-1]
        assert operation["state"] == "OPERATION_STATE_ROLLED_BACK", operation
        rollback = f"zfsilo-rollback@{operation['name'].rpartition('/')[2]}.service"
        status = self._sh(
            self.give,
            f"systemctl status --no-pager -n3 {rollback} || true; "
            f"journalctl --no-pager -o cat -u {rollback}",
        )
        assert "Finished" in status.stdout, "the rollback unit did not run"
        assert self._sh(self.give, COUNT_TARGETS).stdout == "0\n"
        self.give.sh("systemctl stop squatter; rm /root/squatter.py")
        yield "a failed publication was rolled back by its unit and left no target"

    def _delete(self) -> Iterator[str]:
        self.grpc("DeleteVolume", pb.DeleteVolumeRequest(name=f"volumes/{NAME}"))
        assert "demo" not in self._sh(self.give, "zfs list -H -o name -r tank").stdout
        self.take.sh("rm -f /root/blob.sum")
        yield "deleted"
