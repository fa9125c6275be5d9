"""Pods in a real container runtime, with volumes of real ZFS over iSCSI and NVMe/TCP.

The tests follow each other, but each makes what it needs: after a failure the next one goes on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.kubernetes.chart import NAMESPACE
from tests.kubernetes.lab.node import NAME
from tests.kubernetes.lab.pods import CLAIMS
from tests.kubernetes.lab.progress import say
from tests.kubernetes.lab.volumes import ISCSI_FILES, NVME_DEVICE, VOLUMES, PodVolume
from tests.lab import leak_check

if TYPE_CHECKING:
    from tests.kubernetes.api import Object
    from tests.kubernetes.lab.cluster import LabCluster
    from tests.kubernetes.lab.pods import OnePod
    from tests.kubernetes.workload import Workload

READY_S = 600
IN_POD = 3  # plugin, registrar, livenessprobe
LEFT = "zfs list -Hro name -t volume,snapshot tank/zfsilo"
# The purge of a volume that waited for its snapshot follows its deletion.
NONE_LEFT = f'until [ -z "$({LEFT})" ]; do sleep 1; done'
SESSIONS = "for kind in iscsi_session nvme; do ls /sys/class/$kind; done"
STEP_S = 300


def test_the_plugin_runs_in_a_pod(lab: LabCluster) -> None:
    """kubelet has pulled nothing: all containers of the node's pod are of imported images."""

    def ready(pods: list[Object]) -> bool:
        containers = [
            container
            for pod in pods
            if pod["spec"].get("nodeName") == NAME
            for container in pod["status"].get("containerStatuses", [])
        ]
        return len(containers) == IN_POD and all(one["ready"] for one in containers)

    lab.api.until("pods", ready, "the node's pod is ready", namespace=NAMESPACE, within_s=READY_S)


@pytest.mark.parametrize("volume", VOLUMES, ids=lambda volume: volume.name, scope="class")
class TestVolume:
    """One volume after the other: the tests of one run before those of the next."""

    def test_it_is_written_and_read(
        self, lab: LabCluster, work: Workload, pods: OnePod, volume: PodVolume
    ) -> None:
        """A pod gets a zvol over the transport of its class, and reads from it what it wrote."""
        pods.use(volume)
        assert pods.write(volume) == pods.read(volume)
        handle = work.volume(volume.name)["spec"]["csi"]["volumeHandle"]
        dataset = f"tank/zfsilo/{handle.partition('/')[2]}"
        give = lab.pair.give
        listed = give.run("zfs", "list", "-Ho", "type", dataset, timeout_s=STEP_S)
        assert listed.stdout == "volume\n"
        transports = [
            publication["transport"]
            for record in leak_check.records(give)
            if record.get("dataset") == dataset
            for publication in record["publications"]
        ]
        assert transports == [f"TRANSPORT_{volume.transport.upper()}"]

    def test_a_snapshot_is_restored(self, work: Workload, pods: OnePod, volume: PodVolume) -> None:
        """It is taken in use; what is written afterwards is not in the restored volume."""
        snapshot, restored = f"{volume.name}-then", f"{volume.name}-restored"
        pods.use(volume)
        older = pods.written(volume)
        source = work.snapshot(snapshot, volume.name)
        say(f"snapshot {snapshot}: ready")
        newer = pods.write(volume)
        pods.use(volume, restored, **source)
        assert pods.read(volume, restored) == older != newer
        pods.remove()
        pods.remove_claims(restored)
        pods.remove_snapshot(snapshot)


@pytest.mark.parametrize("volume", [NVME_DEVICE, ISCSI_FILES], ids=lambda volume: volume.name)
def test_a_power_cut_of_the_server(lab: LabCluster, pods: OnePod, volume: PodVolume) -> None:
    """Under a pod that writes: its data remain, no write fails, and its writing goes on.

    They are the volumes of the tests before, with what was written after their snapshots.
    """
    pods.use(volume)
    written = pods.written(volume)
    before = pods.number(volume)
    say("power cut of give")
    seconds = lab.pair.give.power_cut()
    say(f"give has booted again in {seconds:.0f} s")
    booted = pods.number(volume, above=before - 1)
    pods.number(volume, above=booted + 1)  # the first one may have been on its way
    assert pods.read(volume) == written
    status = pods.use(volume)["status"]["containerStatuses"][0]
    assert status["restartCount"] == 0, "a write failed"


def test_nothing_is_left(lab: LabCluster, work: Workload, pods: OnePod) -> None:
    pods.remove()
    for snapshot in work.api.objects("volumesnapshots", work.name):
        pods.remove_snapshot(snapshot["metadata"]["name"])
    claims = [claim["metadata"]["name"] for claim in work.api.objects(CLAIMS, work.name)]
    pods.remove_claims(*claims)
    assert work.api.objects("persistentvolumes") == []
    give, take = lab.pair.give, lab.pair.take
    give.sh(NONE_LEFT, timeout_s=STEP_S)
    mounts = take.run("cat", "/proc/self/mountinfo", timeout_s=STEP_S).stdout.splitlines()
    assert [line for line in mounts if re.search(r"kubernetes\.io[~/]csi", line)] == []
    assert take.sh(SESSIONS, timeout_s=STEP_S).stdout == ""
    assert leak_check.leaks(lab.pair) == []
    say("nothing has leaked")
    assert leak_check.secrets_shown(lab.pair) == []
    say("no secret shows")
