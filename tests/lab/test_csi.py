"""What the conformance suite does not ask, for real: data, sizes, moments, fences and kills."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from csi.v1 import csi_pb2 as csi

from tests.csi.lab_plugin import install, plugin_of
from tests.csi.plugin_client import GIB, NODE, block, down, fails, until_done, up
from tests.csi.test_snapshots import from_snapshot, from_volume, snapshot
from tests.lab import oracle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from tests.csi.plugin_client import PluginClient
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

OTHER = "other"
OTHER_IQN = "iqn.2024-01.lab.other:host"
STEP_S = 180
# Writes the same number to raw devices, one after the other, and counts up; says how it ended.
COUNTER = """
import mmap, os, sys
devices = [os.open(path, os.O_RDWR | os.O_DIRECT | os.O_SYNC) for path in sys.argv[1:]]
page, number = mmap.mmap(-1, 4096), 0
try:
    while True:
        number += 1
        page[:8] = number.to_bytes(8, "little")
        for each in devices:
            os.pwrite(each, page, 0)
except OSError as error:
    print(f"write failed: {error.strerror}", flush=True)
"""
READ = "dd if={path} bs=4096 count=1 iflag=direct status=none | od -An -N8 -t u8"
FAILED = "until journalctl -u counter -o cat | grep -q 'write failed'; do sleep 0.2; done"
LOST = "until grep -qx FAILED /sys/class/iscsi_session/*/state; do sleep 0.2; done"
# Pending I/O fails after 120 s otherwise; the kernel takes no other time once a session is lost.
HURRY = "echo 10 > /sys/class/iscsi_session/$(ls /sys/class/iscsi_session)/recovery_tmo"
ACLS = "ls /sys/kernel/config/target/iscsi/iqn.*/tpgt_1/acls"


@pytest.fixture(scope="class")
def installed(pair: Pair) -> Pair:
    """The pair with the plugin on both machines."""
    install(pair)
    return pair


@pytest.fixture
async def plugin(installed: Pair) -> AsyncIterator[PluginClient]:
    async with plugin_of(installed) as reached:
        yield reached


def write(take: Machine, path: str) -> str:
    """Write 8 MiB, and return their checksum."""
    take.sh(f"dd if=/dev/urandom of={path} bs=1M count=8 conv=fsync status=none")
    return checksum(take, path)


def checksum(take: Machine, path: str) -> str:
    """Return the checksum of a file; "" when it is not there."""
    done = take.run("sha256sum", path, check=False, timeout_s=STEP_S)
    return done.stdout.partition(" ")[0]


def count(machine: Machine, path: str) -> int:
    """Return the number that was written to a device last."""
    return int(machine.sh(READ.format(path=path)).stdout)


def start_counter(take: Machine, *paths: str) -> None:
    """Let somebody count on raw devices, without end."""
    take.put("/root/counter.py", COUNTER.encode(), 0o600)
    words = ("systemd-run", "-q", "--unit=counter", "python3", "/root/counter.py")
    take.run(*words, *paths)
    counted(take, paths[-1], 9)


def counted(take: Machine, path: str, number: int) -> None:
    """Return when the number on a device is larger than that."""
    asked = READ.format(path=path)
    take.sh(f'until [ "$({asked})" -gt {number} ]; do sleep 0.1; done', timeout_s=STEP_S)


@pytest.mark.timeout(1200, func_only=True)
class TestKubernetes:
    """One cluster of one node, from the first volume to the last."""

    async def test_data_and_size_of_what_is_restored(
        self, plugin: PluginClient, take: Machine
    ) -> None:
        made = await plugin.create("data")
        path = await up(plugin, made.volume_id, "data")
        first = write(take, f"{path}/first")
        taken = await snapshot(plugin, made.volume_id)
        second = write(take, f"{path}/second")

        status = (await plugin.get(made.volume_id)).status
        assert status.published_node_ids == [NODE]
        assert not status.volume_condition.abnormal

        larger = await plugin.create(
            "larger", volume_content_source=from_snapshot(taken.snapshot_id),
            capacity_range=csi.CapacityRange(required_bytes=2 * GIB),
        )  # fmt: skip
        path = await up(plugin, larger.volume_id, "larger")
        assert (checksum(take, f"{path}/first"), checksum(take, f"{path}/second")) == (first, "")
        size = int(take.sh(f"df -B1 --output=size {path} | tail -1").stdout)
        usage = (await plugin.stats(larger.volume_id, "larger")).usage[0]
        assert usage.total == size > 1.8 * GIB, "the filesystem was grown without being asked to"

        clone = await plugin.create("clone", volume_content_source=from_volume(made.volume_id))
        path = await up(plugin, clone.volume_id, "clone")
        found = (checksum(take, f"{path}/first"), checksum(take, f"{path}/second"))
        assert found == (first, second)
        for each, pod in ((made, "data"), (larger, "larger"), (clone, "clone")):
            await down(plugin, each.volume_id, pod)
        await plugin.controller.DeleteSnapshot(
            csi.DeleteSnapshotRequest(snapshot_id=taken.snapshot_id)
        )

    async def test_a_group_is_of_one_moment(self, plugin: PluginClient, take: Machine) -> None:
        """Somebody writes to two volumes in lock step: no snapshot is ahead of the other."""
        kind, names = block(), ("one", "two")
        ids = [(await plugin.create(each, volume_capabilities=[kind])).volume_id for each in names]
        paths = [
            await up(plugin, volume_id, name, kind)
            for name, volume_id in zip(names, ids, strict=True)
        ]
        start_counter(take, *paths)
        request = csi.CreateVolumeGroupSnapshotRequest(name="moment", source_volume_ids=ids)
        group = (await plugin.group.CreateVolumeGroupSnapshot(request)).group_snapshot
        then = count(take, paths[1])
        counted(take, paths[1], then + 3)
        take.run("systemctl", "stop", "counter")

        cut = {}
        for each in group.snapshots:
            restored = await plugin.create(
                f"of-{each.source_volume_id}", volume_capabilities=[kind],
                volume_content_source=from_snapshot(each.snapshot_id),
            )  # fmt: skip
            path = await up(plugin, restored.volume_id, "restored", kind)
            cut[each.source_volume_id] = count(take, path)
            await down(plugin, restored.volume_id, "restored")
        one, two = (cut[volume_id] for volume_id in ids)
        print(f"cut at {one} and {two}, after it {then}")
        assert 9 < two <= one <= two + 1
        assert two <= then, "and it was of then: the counter has gone on since"

        for volume_id, name in zip(ids, names, strict=True):
            await down(plugin, volume_id, name)
        await plugin.group.DeleteVolumeGroupSnapshot(
            csi.DeleteVolumeGroupSnapshotRequest(
                group_snapshot_id=group.group_snapshot_id,
                snapshot_ids=[each.snapshot_id for each in group.snapshots],
            )
        )

    async def test_a_node_without_kubelet_is_fenced(
        self, plugin: PluginClient, give: Machine, take: Machine
    ) -> None:
        """Its session is alive and its pod writes; nobody there hears of the detachment."""
        kind = block()
        volume_id = (await plugin.create(volume_capabilities=[kind])).volume_id
        old = await plugin.publish(volume_id, volume_capability=kind)
        await plugin.stage(volume_id, old, kind)
        await plugin.mount(volume_id, capability=kind)
        take.sh(HURRY)
        start_counter(take, plugin.path("pod-a"))
        give.run("zfsiloctl", "host", "add", OTHER, "--iqn", OTHER_IQN, timeout_s=STEP_S)
        with fails("FAILED_PRECONDITION", f"published to {NODE}"):
            await plugin.publish(volume_id, OTHER, volume_capability=kind)

        await plugin.unpublish(volume_id)
        await plugin.publish(volume_id, OTHER, volume_capability=kind)

        zvol = f"/dev/zvol/tank/zfsilo/{volume_id.partition('/')[2]}"
        cut = count(give, zvol)
        assert (await plugin.get(volume_id)).status.published_node_ids == [OTHER]
        assert give.sh(ACLS).stdout.split() == [OTHER_IQN]
        take.sh(LOST, timeout_s=STEP_S)
        assert (await plugin.stats(volume_id)).volume_condition.abnormal
        take.sh(FAILED, timeout_s=STEP_S)
        with fails("FAILED_PRECONDITION"):  # a call of kubelet that was under way all the time
            await plugin.stage(volume_id, old, kind)
        assert count(give, zvol) == cut, "not one write came through"

        await plugin.unmount(volume_id)  # kubelet is back
        await plugin.unstage(volume_id)
        assert take.sh("ls /sys/class/iscsi_session").stdout == ""
        await plugin.unpublish(volume_id, OTHER)
        await plugin.delete(volume_id)
        give.run("zfsiloctl", "host", "delete", OTHER, timeout_s=STEP_S)

    async def test_killed_in_the_middle(
        self, plugin: PluginClient, give: Machine, take: Machine
    ) -> None:
        """Daemon and plugin of both machines; the repeated call goes on where it was."""

        async def cut(machine: Machine, unit: str, call: Any) -> Any:
            task: Awaitable[Any] = asyncio.ensure_future(call())
            await asyncio.sleep(0.4)  # somewhere in the middle: wherever, it has to hold
            await asyncio.to_thread(machine.run, "systemctl", "kill", "--signal=KILL", unit)
            await asyncio.gather(task, return_exceptions=True)
            return await until_done(call, STEP_S)

        volume_id = (await cut(give, "zfsilod", plugin.create)).volume_id
        context = await cut(give, "zfsilo-csi", lambda: plugin.publish(volume_id))
        await cut(take, "zfsilod", lambda: plugin.stage(volume_id, context))
        await cut(take, "zfsilo-csi", lambda: plugin.mount(volume_id))
        assert write(take, plugin.path("pod-a/file"))
        await cut(take, "zfsilod", lambda: plugin.unmount(volume_id))
        await cut(take, "zfsilo-csi", lambda: plugin.unstage(volume_id))
        await cut(give, "zfsilod", lambda: plugin.unpublish(volume_id))
        await cut(give, "zfsilo-csi", lambda: plugin.delete(volume_id))

    def test_nothing_is_left_and_no_secret_was_shown(self, installed: Pair) -> None:
        assert oracle.leaks(installed) == []
        assert oracle.secrets_shown(installed) == []
