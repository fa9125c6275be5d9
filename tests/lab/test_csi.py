"""The CSI plugin beyond the conformance suite: data, sizes, groups, fencing, killed processes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from csi.v1 import csi_pb2 as csi
from grpc.aio import AioRpcError

from tests.csi.lab_plugin import install, plugin_of
from tests.csi.plugin_client import GIB, NODE, block, down, fails, until_done, up
from tests.csi.test_snapshots import from_snapshot, from_volume, snapshot
from tests.lab import leak_check

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from tests.csi.plugin_client import PluginClient
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

OTHER = "other"
OTHER_IQN = "iqn.2024-01.lab.other:host"
STEP_S = 180
# Writes an increasing number to all devices in turn, and prints the error that stops it.
COUNTER = """
import mmap, os, sys
devices = [os.open(path, os.O_RDWR | os.O_DIRECT | os.O_SYNC) for path in sys.argv[1:]]
page, number = mmap.mmap(-1, 4096), 0
try:
    while True:
        number += 1
        page[:8] = number.to_bytes(8, "little")
        for device in devices:
            os.pwrite(device, page, 0)
except OSError as error:
    print(f"write failed: {error.strerror}", flush=True)
"""
READ = "dd if={path} bs=4096 count=1 iflag=direct status=none | od -An -N8 -t u8"
FAILED = "until journalctl -u counter -o cat | grep -q 'write failed'; do sleep 0.2; done"
LOST = "until grep -qx FAILED /sys/class/iscsi_session/*/state; do sleep 0.2; done"
# Otherwise pending I/O fails after 120 s. Must be set before the session is lost.
SHORT_TIMEOUT = "echo 10 > /sys/class/iscsi_session/$(ls /sys/class/iscsi_session)/recovery_tmo"
NOT_YET = "/usr/local/lib/systemd/system"  # whoever mounts there is root after the next boot
ACLS = "ls /sys/kernel/config/target/iscsi/iqn.*/tpgt_1/acls"


@pytest.fixture(scope="class")
def installed(pair: Pair) -> Pair:
    """The pair with the plugin on both machines."""
    install(pair)
    return pair


@pytest.fixture
async def plugin(installed: Pair) -> AsyncIterator[PluginClient]:
    async with plugin_of(installed) as connected:
        yield connected


def write(take: Machine, path: str) -> str:
    """Write 8 MiB of random data and return its checksum."""
    take.sh(f"dd if=/dev/urandom of={path} bs=1M count=8 conv=fsync status=none")
    return checksum(take, path)


def checksum(take: Machine, path: str) -> str:
    """Return the checksum of a file, or "" if it does not exist."""
    done = take.run("sha256sum", path, check=False, timeout_s=STEP_S)
    return done.stdout.partition(" ")[0]


def count(machine: Machine, path: str) -> int:
    """Return the last number that the counter wrote to a device."""
    return int(machine.sh(READ.format(path=path)).stdout)


def start_counter(take: Machine, *paths: str) -> None:
    """Start the counter on raw devices."""
    take.put("/root/counter.py", COUNTER.encode(), 0o600)
    words = ("systemd-run", "-q", "--unit=counter", "python3", "/root/counter.py")
    take.run(*words, *paths)
    wait_for_count(take, paths[-1], 9)


def wait_for_count(take: Machine, path: str, number: int) -> None:
    """Wait until the number on a device is larger than `number`."""
    read = READ.format(path=path)
    take.sh(f'until [ "$({read})" -gt {number} ]; do sleep 0.1; done', timeout_s=STEP_S)


@pytest.mark.long
@pytest.mark.timeout(1200, func_only=True)
class TestKubernetes:
    """A cluster with one node."""

    async def test_data_and_size_of_restored_volumes(
        self, plugin: PluginClient, take: Machine
    ) -> None:
        origin = await plugin.create("data")
        path = await up(plugin, origin.volume_id, "data")
        first = write(take, f"{path}/first")
        taken = await snapshot(plugin, origin.volume_id)
        second = write(take, f"{path}/second")

        status = (await plugin.get(origin.volume_id)).status
        assert status.published_node_ids == [NODE]
        assert not status.volume_condition.abnormal

        larger = await plugin.create(
            "larger",
            volume_content_source=from_snapshot(taken.snapshot_id),
            capacity_range=csi.CapacityRange(required_bytes=2 * GIB),
        )
        path = await up(plugin, larger.volume_id, "larger")
        assert (checksum(take, f"{path}/first"), checksum(take, f"{path}/second")) == (first, "")
        size = int(take.sh(f"df -B1 --output=size {path} | tail -1").stdout)
        usage = (await plugin.stats(larger.volume_id, "larger")).usage[0]
        assert usage.total == size > 1.8 * GIB, "the filesystem must have been grown"

        clone = await plugin.create("clone", volume_content_source=from_volume(origin.volume_id))
        path = await up(plugin, clone.volume_id, "clone")
        assert (checksum(take, f"{path}/first"), checksum(take, f"{path}/second")) == (
            first,
            second,
        )
        for volume, pod in ((origin, "data"), (larger, "larger"), (clone, "clone")):
            await down(plugin, volume.volume_id, pod)
        await plugin.controller.DeleteSnapshot(
            csi.DeleteSnapshotRequest(snapshot_id=taken.snapshot_id)
        )

    async def test_group_snapshots_are_consistent(
        self, plugin: PluginClient, take: Machine
    ) -> None:
        """A counter writes to two volumes in turn: their snapshots differ by at most one."""
        kind, names = block(), ("one", "two")
        ids = [(await plugin.create(name, volume_capabilities=[kind])).volume_id for name in names]
        paths = [
            await up(plugin, volume_id, name, kind)
            for name, volume_id in zip(names, ids, strict=True)
        ]
        start_counter(take, *paths)
        request = csi.CreateVolumeGroupSnapshotRequest(name="moment", source_volume_ids=ids)
        group = (await plugin.group.CreateVolumeGroupSnapshot(request)).group_snapshot
        latest = count(take, paths[1])
        wait_for_count(take, paths[1], latest + 3)
        take.run("systemctl", "stop", "counter")

        counts = {}
        for item in group.snapshots:
            restored = await plugin.create(
                f"of-{item.source_volume_id}",
                volume_capabilities=[kind],
                volume_content_source=from_snapshot(item.snapshot_id),
            )
            path = await up(plugin, restored.volume_id, "restored", kind)
            counts[item.source_volume_id] = count(take, path)
            await down(plugin, restored.volume_id, "restored")
        one, two = (counts[volume_id] for volume_id in ids)
        print(f"snapshots at {one} and {two}, after them {latest}")
        assert 9 < two <= one <= two + 1
        assert two <= latest, "the snapshot has data of a later time"

        for volume_id, name in zip(ids, names, strict=True):
            await down(plugin, volume_id, name)
        await plugin.group.DeleteVolumeGroupSnapshot(
            csi.DeleteVolumeGroupSnapshotRequest(
                group_snapshot_id=group.group_snapshot_id,
                snapshot_ids=[item.snapshot_id for item in group.snapshots],
            )
        )

    async def test_a_node_without_kubelet_is_fenced(
        self, plugin: PluginClient, give: Machine, take: Machine
    ) -> None:
        """Its session is logged in and its pod writes, but kubelet does not detach the volume."""
        kind = block()
        volume_id = (await plugin.create(volume_capabilities=[kind])).volume_id
        old = await plugin.publish(volume_id, volume_capability=kind)
        await plugin.stage(volume_id, old, kind)
        await plugin.mount(volume_id, capability=kind)
        take.sh(SHORT_TIMEOUT)
        start_counter(take, plugin.path("pod-a"))
        give.run("zfsiloctl", "host", "add", OTHER, "--iqn", OTHER_IQN, timeout_s=STEP_S)
        with fails("FAILED_PRECONDITION", f"published to {NODE}"):
            await plugin.publish(volume_id, OTHER, volume_capability=kind)

        await plugin.unpublish(volume_id)
        await plugin.publish(volume_id, OTHER, volume_capability=kind)

        zvol = f"/dev/zvol/tank/zfsilo/{volume_id.partition('/')[2]}"
        fenced_at = count(give, zvol)
        assert (await plugin.get(volume_id)).status.published_node_ids == [OTHER]
        assert give.sh(ACLS).stdout.split() == [OTHER_IQN]
        take.sh(LOST, timeout_s=STEP_S)
        assert (await plugin.stats(volume_id)).volume_condition.abnormal
        take.sh(FAILED, timeout_s=STEP_S)
        with fails("FAILED_PRECONDITION"):  # a delayed call of kubelet
            await plugin.stage(volume_id, old, kind)
        assert count(give, zvol) == fenced_at, "a write succeeded after the fence"

        await plugin.unmount(volume_id)  # kubelet is back
        await plugin.unstage(volume_id)
        assert take.sh("ls /sys/class/iscsi_session").stdout == ""
        await plugin.unpublish(volume_id, OTHER)
        await plugin.delete(volume_id)
        give.run("zfsiloctl", "host", "delete", OTHER, timeout_s=STEP_S)

    async def test_links_lead_no_mount_outside(self, plugin: PluginClient, take: Machine) -> None:
        """Links below kubelet's folder: to nothing, and to what only the host's /tmp has."""
        volume_id = (await plugin.create("links")).volume_id
        await up(plugin, volume_id, "links")
        take.run("mkdir", "/tmp/outside")
        for name, target in (("nothing", NOT_YET), ("private", "/tmp/outside")):
            take.run("ln", "-s", target, plugin.path(name))
            for path in (name, f"{name}/pod"):
                with pytest.raises(AioRpcError):
                    await plugin.mount(volume_id, path)
        assert take.run("test", "-e", NOT_YET, check=False).rc != 0
        assert take.sh("ls /tmp/outside").stdout == ""
        await down(plugin, volume_id, "links")

    async def test_killed_processes(
        self, plugin: PluginClient, give: Machine, take: Machine
    ) -> None:
        """Daemon or plugin is killed during a call; the repeated call succeeds."""

        async def kill(machine: Machine, unit: str, call: Any) -> Any:
            task: Awaitable[Any] = asyncio.ensure_future(call())
            await asyncio.sleep(0.4)  # an arbitrary moment of the call
            await asyncio.to_thread(machine.run, "systemctl", "kill", "--signal=KILL", unit)
            await asyncio.gather(task, return_exceptions=True)
            return await until_done(call, STEP_S)

        volume_id = (await kill(give, "zfsilod", plugin.create)).volume_id
        context = await kill(give, "zfsilo-csi", lambda: plugin.publish(volume_id))
        await kill(take, "zfsilod", lambda: plugin.stage(volume_id, context))
        await kill(take, "zfsilo-csi", lambda: plugin.mount(volume_id))
        assert write(take, plugin.path("pod-a/file"))
        await kill(take, "zfsilod", lambda: plugin.unmount(volume_id))
        await kill(take, "zfsilo-csi", lambda: plugin.unstage(volume_id))
        await kill(give, "zfsilod", lambda: plugin.unpublish(volume_id))
        await kill(give, "zfsilo-csi", lambda: plugin.delete(volume_id))

    def test_no_leak_and_no_secret_shown(self, installed: Pair) -> None:
        assert leak_check.leaks(installed) == []
        assert leak_check.secrets_shown(installed) == []
