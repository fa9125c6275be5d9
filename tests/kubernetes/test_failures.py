"""Parts of the cluster that are killed, lost or down, while volumes are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kubernetes.api import named
from tests.kubernetes.objects import storage_class

if TYPE_CHECKING:
    from tests.kubernetes.api import Object
    from tests.kubernetes.cluster import KubeCluster
    from tests.kubernetes.node import KubeNode
    from tests.kubernetes.workload import KubeNamespace

DEFAULT, OTHER, ANNEX = "node1.example", "node2.example", "node3.example"
OUT_OF_SERVICE = {
    "key": "node.kubernetes.io/out-of-service",
    "value": "nodeshutdown",
    "effect": "NoExecute",
}
ROUNDS = 6
LONG_S = 240.0


def is_ready(node: Object) -> bool:
    conditions = node["status"]["conditions"]
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def until_ready(cluster: KubeCluster, node: str, *, ready: bool) -> None:
    cluster.api.until(
        "nodes",
        lambda nodes: is_ready(named(nodes, node)) is ready,
        f"{node} is {'ready' if ready else 'lost'}",
        within_s=LONG_S,
    )


def without_mounts(node: KubeNode, volume: str) -> bool:
    return not [path for path in node.csi_mounts() if volume in path]


def test_the_controller_is_killed_while_claims_come_and_go(
    cluster: KubeCluster, ns: KubeNamespace
) -> None:
    storage_class(cluster, "immediate", volumeBindingMode="Immediate")
    for number in range(ROUNDS):
        ns.claim(f"claim-{number}", storage_class="immediate")
        cluster.controller.restart_plugin()
        ns.api.delete("persistentvolumeclaims", f"claim-{number}", ns.name)
    for number in range(ROUNDS):
        ns.gone("persistentvolumeclaims", f"claim-{number}", LONG_S)
    cluster.no_volume_of(ns.name)


def test_both_plugins_are_killed_while_a_pod_starts(
    cluster: KubeCluster, ns: KubeNamespace
) -> None:
    ns.claim("data")
    ns.pod("pod", "data", node=DEFAULT)
    cluster.api.until(
        "volumeattachments",
        lambda objects: [one for one in objects if one["spec"]["nodeName"] == DEFAULT],
        "the volume is being attached",
    )
    node = cluster.node(DEFAULT)
    node.plugin.kill()
    cluster.controller.restart_plugin()
    node.plugin.start()
    ns.running("pod", within_s=LONG_S)


@pytest.mark.parametrize("sidecar", ["provisioner", "attacher", "resizer", "snapshotter"])
def test_a_sidecar_is_killed(cluster: KubeCluster, ns: KubeNamespace, sidecar: str) -> None:
    """It starts again, takes its lease after the old one has ended, and goes on."""
    ns.claim("source")
    ns.pod("writer", "source")
    cluster.controller.sidecars[sidecar].crash()
    ns.running("writer", within_s=LONG_S)
    change = {"spec": {"resources": {"requests": {"storage": "2Gi"}}}}
    ns.api.patch("persistentvolumeclaims", "source", change, ns.name)
    ns.claim("restored", "2Gi", **ns.snapshot("s", "source"))
    ns.pod("reader", "restored")
    ns.running("reader", within_s=LONG_S)


def test_kubelet_is_killed_and_its_pod_deleted_meanwhile(
    cluster: KubeCluster, ns: KubeNamespace
) -> None:
    ns.claim("data")
    ns.pod("pod", "data", node=DEFAULT)
    volume, node = ns.bound("data"), ns.node_of("pod")
    file = ns.path("pod", "data") / "file"
    file.write_text("kept")
    node.kubelet.kill()
    node.kubelet.start()
    assert file.read_text() == "kept"
    node.kubelet.kill()
    ns.api.delete("pods", "pod", ns.name, gracePeriodSeconds=0)
    ns.gone("pods", "pod")
    node.kubelet.start()
    ns.detached(volume, LONG_S)
    assert without_mounts(node, volume)


def test_zfsilod_of_a_node_is_down_while_a_pod_is_deleted(
    cluster: KubeCluster, ns: KubeNamespace
) -> None:
    ns.claim("data")
    ns.pod("pod", "data", node=DEFAULT)
    volume, node = ns.bound("data"), ns.node_of("pod")
    node.zfsilod.process.kill()
    ns.api.delete("pods", "pod", ns.name)
    ns.until("pods", "pod", lambda pod: pod["metadata"].get("deletionTimestamp"), "ends")
    node.zfsilod.start()
    ns.gone("pods", "pod", LONG_S)
    ns.detached(volume, LONG_S)


def test_a_server_that_is_down_stops_only_its_own_zone(
    cluster: KubeCluster, ns: KubeNamespace
) -> None:
    annex, far = cluster.servers["annex"], cluster.node(ANNEX)
    annex.process.kill()
    ns.claim("near")
    ns.pod("near", "near", node=DEFAULT)
    ns.running("near")
    ns.claim("far")
    ns.pod("far", "far", node=ANNEX)
    ns.warned("far", "annex")
    far.kubelet.kill()
    far.end_pod()
    far.kubelet.start()
    far.start_pod(cluster.release)
    cluster.wait_for_drivers()
    annex.start()
    ns.running("far", within_s=LONG_S)


def test_a_pod_ends_while_its_server_is_down_and_kubelet_restarts(
    cluster: KubeCluster, ns: KubeNamespace
) -> None:
    """Unmounting is the node's own work; only the detach waits for the server."""
    ns.claim("data")
    ns.pod("pod", "data", node=ANNEX)
    volume, node = ns.bound("data"), ns.node_of("pod")
    cluster.servers["annex"].process.kill()
    node.kubelet.kill()
    node.end_pod()
    node.kubelet.start()
    node.start_pod(cluster.release)
    ns.delete("pods", "pod")
    cluster.servers["annex"].start()
    ns.detached(volume, LONG_S)
    assert without_mounts(node, volume)


def test_a_lost_node_gives_its_volume_to_another(cluster: KubeCluster, ns: KubeNamespace) -> None:
    """By the out-of-service taint; the lost node comes back and cleans up by itself."""
    ns.claim("data")
    ns.pod("one", "data", node=OTHER)
    (ns.path("one", "data") / "file").write_text("kept")
    volume, node = ns.bound("data"), ns.node_of("one")
    for program in (node.kubelet, node.registrar, node.plugin, node.zfsilod.process):
        program.kill()
    until_ready(cluster, OTHER, ready=False)
    taint: Object = {"spec": {"taints": [OUT_OF_SERVICE]}}
    cluster.api.patch("nodes", OTHER, taint)
    ns.api.delete("pods", "one", ns.name)
    ns.gone("pods", "one", LONG_S)
    ns.pod("two", "data", node=DEFAULT)
    ns.running("two", within_s=LONG_S)
    assert (ns.path("two", "data") / "file").read_text() == "kept"
    node.zfsilod.start()
    node.plugin.start()
    node.kubelet.start()
    node.registrar.start()
    until_ready(cluster, OTHER, ready=True)
    untainted: Object = {"spec": {"taints": None}}
    cluster.api.patch("nodes", OTHER, untainted)
    cluster.until(lambda: without_mounts(node, volume), "the old node has unmounted it", LONG_S)
    cluster.until(lambda: not node.zfsilod.facts(), "the old node has no session", LONG_S)


def test_a_node_that_reboots_mounts_its_volumes_again(
    cluster: KubeCluster, ns: KubeNamespace
) -> None:
    ns.claim("data")
    ns.pod("pod", "data", node=OTHER)
    (ns.path("pod", "data") / "file").write_text("kept")
    volume, node = ns.bound("data"), ns.node_of("pod")
    node.crash()
    node.boot()
    node.start_pod(cluster.release)
    until_ready(cluster, OTHER, ready=True)
    file = ns.path("pod", "data") / "file"
    cluster.until(file.exists, "it is mounted again", LONG_S)
    assert file.read_text() == "kept"
    ns.delete("pods", "pod")
    ns.detached(volume, LONG_S)
