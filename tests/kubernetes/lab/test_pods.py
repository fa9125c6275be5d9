"""A pod in a real container runtime, with a volume of real ZFS over iSCSI."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kubernetes.chart import NAMESPACE
from tests.kubernetes.lab.node import NAME
from tests.kubernetes.lab.volumes import VOLUMES, PodVolume
from tests.lab import leak_check

if TYPE_CHECKING:
    from tests.kubernetes.api import Object
    from tests.kubernetes.lab.cluster import LabCluster
    from tests.kubernetes.workload import Workload

GONE_ON_S = 900
IN_POD = 3  # plugin, registrar, livenessprobe
SHA256 = 64  # digits
each_volume = pytest.mark.parametrize("volume", VOLUMES, ids=lambda volume: volume.name)


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

    lab.api.until("pods", ready, "the node's pod is ready", namespace=NAMESPACE, within_s=GONE_ON_S)


@each_volume
def test_a_pod_writes(lab: LabCluster, work: Workload, volume: PodVolume) -> None:
    volume.use(work)
    assert len(volume.write(lab, work)) == SHA256
    handle = work.volume(volume.name)["spec"]["csi"]["volumeHandle"]
    dataset = f"tank/zfsilo/{handle.partition('/')[2]}"
    assert lab.pair.give.run("zfs", "list", "-Ho", "type", dataset).stdout == "volume\n"
    publication = leak_check.records(lab.pair.give)
    transports = {one["transport"] for item in publication for one in item["publications"]}
    assert f"TRANSPORT_{volume.transport.upper()}" in transports
