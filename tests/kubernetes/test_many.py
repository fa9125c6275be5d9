"""Many claims at once, and the most that a node may have."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.kubernetes.workload import is_running

if TYPE_CHECKING:
    from tests.kubernetes.cluster import KubeCluster
    from tests.kubernetes.workload import KubeNamespace

PODS = 30  # the two nodes of the zone may have 40 volumes
ZONE = {"topology.zfsilo.io/zone": "default"}
LONG_S = 400.0


def test_thirty_claims_at_once(ns: KubeNamespace, note: list[str]) -> None:
    started = time.monotonic()
    for number in range(PODS):
        ns.pod(f"pod-{number}", nodeSelector=ZONE)
    ns.all_running(PODS, LONG_S)
    without_s = time.monotonic() - started
    started = time.monotonic()
    for number in range(PODS):
        ns.claim(f"claim-{number}")
        ns.pod(f"claimed-{number}", f"claim-{number}", nodeSelector=ZONE)
    ns.all_running(2 * PODS, LONG_S)
    with_s = time.monotonic() - started
    note.append(
        f"{PODS} pods run after {without_s:.0f} s without volumes and {with_s:.0f} s with a new "
        f"one each: {60 * PODS / with_s:.0f} a minute, {with_s / without_s:.1f} times as long"
    )
    pods, claims = ([f"{kind}-{number}" for number in range(PODS)] for kind in ("claimed", "claim"))
    ns.delete("pods", *pods)
    ns.delete("persistentvolumeclaims", *claims)
    ns.cluster.no_volume_of(ns.name)


def test_a_node_with_as_many_volumes_as_it_may_have(
    cluster: KubeCluster, ns: KubeNamespace
) -> None:
    node = "node3.example"
    csi_node = cluster.api.get("csinodes", node)
    assert csi_node is not None
    most = csi_node["spec"]["drivers"][0]["allocatable"]["count"]
    assert most == cluster.node(node).most_volumes
    cluster.quiet(node)
    for number in range(most + 1):
        ns.claim(f"claim-{number}")
        ns.pod(f"pod-{number}", f"claim-{number}", node=node)
    ns.all_running(most, LONG_S)
    last = next(pod for pod in ns.api.objects("pods", ns.name) if not is_running(pod))
    name = str(last["metadata"]["name"])
    ns.warned(name, "exceed max volume count")
    first = "pod-1" if name == "pod-0" else "pod-0"
    ns.delete("pods", first)
    ns.running(name)
