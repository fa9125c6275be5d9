"""Volumes that outlive their claims: Retain, and how a lost volume is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kubernetes.api import named
from tests.kubernetes.cluster import PAGE, commands_of
from tests.kubernetes.objects import storage_class

if TYPE_CHECKING:
    from tests.kubernetes.api import Object
    from tests.kubernetes.cluster import KubeCluster
    from tests.kubernetes.workload import KubeNamespace


def retained(cluster: KubeCluster, ns: KubeNamespace) -> str:
    """Write in a volume of a class that retains, delete its claim, and return the volume."""
    storage_class(cluster, "retained", reclaimPolicy="Retain")
    ns.claim("data", storage_class="retained")
    ns.pod("pod", "data", node="node1.example")
    (ns.path("pod", "data") / "file").write_text("kept")
    volume = ns.bound("data")
    ns.delete("pods", "pod")
    ns.delete("persistentvolumeclaims", "data")
    return volume


def test_a_retained_volume_is_claimed_again(cluster: KubeCluster, ns: KubeNamespace) -> None:
    volume = retained(cluster, ns)
    unclaimed: Object = {"spec": {"claimRef": None}}
    cluster.api.patch("persistentvolumes", volume, unclaimed)
    ns.claim("again", storage_class="retained", volumeName=volume)
    ns.pod("other", "again", node="node2.example")
    assert (ns.path("other", "again") / "file").read_text() == "kept"
    deleted: Object = {"spec": {"persistentVolumeReclaimPolicy": "Delete"}}
    cluster.api.patch("persistentvolumes", volume, deleted)


def test_a_lost_volume_is_found(cluster: KubeCluster, ns: KubeNamespace) -> None:
    """By the commands of the page."""
    volume = retained(cluster, ns)
    item = named(cluster.api.objects("persistentvolumes"), volume)
    handle = item["spec"]["csi"]["volumeHandle"]
    lost = handle.partition("/")[2]
    ns.claim("kept")
    ns.pod("other", "kept", node="node1.example")
    ns.running("other")
    ns.detached(volume)
    cluster.api.delete("persistentvolumes", volume)
    cluster.api.until(
        "persistentvolumes", lambda objects: not named(objects, volume), f"{volume} is gone"
    )
    command, _redirected, file = commands_of(PAGE, "## Lost volumes")[0].rpartition(" > ")
    handles = cluster.folder / file
    handles.write_text(cluster.type_in(command))
    give = cluster.servers["give"]
    listed = give.ctl("csi", "orphans", handles)
    assert lost in listed
    assert f"{ns.name}/data" in listed
    assert give.ctl("csi", "orphans", handles, "--quiet").split() == [lost]
    give.ctl("volume", "delete", lost, "--yes")
