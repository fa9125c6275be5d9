"""Zones and capacity: where a claim goes, and what is said when it fits nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kubernetes.chart import CONTROLLER, NAMESPACE
from tests.kubernetes.objects import storage_class
from tests.kubernetes.workload import from_claim

if TYPE_CHECKING:
    from tests.kubernetes.api import Object
    from tests.kubernetes.cluster import KubeCluster
    from tests.kubernetes.workload import KubeNamespace

ZONE = "topology.zfsilo.io/zone"
FULL = ("did not have enough free storage", "ResourceExhausted")
DEFAULT, ANNEX = "node1.example", "node3.example"  # a node of each zone


def capacities(cluster: KubeCluster, name: str) -> dict[str, Object]:
    """Wait until a class has a capacity in both zones, and return them by zone."""

    def both(objects: list[Object]) -> dict[str, Object]:
        zones = {
            one["nodeTopology"]["matchLabels"][ZONE]: one
            for one in objects
            if one["storageClassName"] == name
        }
        return zones if len(zones) == 2 else {}

    return cluster.api.until(
        "csistoragecapacities", both, f"the capacity of {name}", namespace=NAMESPACE
    )


def is_told_full(events: list[Object]) -> bool:
    """Tell whether the scheduler or the provisioner has found a zone full."""
    return any(text in event["message"] for event in events for text in FULL)


def test_the_shipped_class_has_a_capacity_in_each_zone(cluster: KubeCluster) -> None:
    for capacity in capacities(cluster, "zfsilo").values():
        assert capacity["capacity"] != "0"
        owners = capacity["metadata"]["ownerReferences"]
        assert [(owner["kind"], owner["name"]) for owner in owners] == [("Deployment", CONTROLLER)]


def test_a_claim_larger_than_any_pool_is_not_scheduled(ns: KubeNamespace) -> None:
    ns.claim("huge", "900Ti")
    ns.pod("pod", "huge")
    ns.warned("pod", "did not have enough free storage")


def test_two_reserved_claims_stay_in_the_zone_of_their_pods(
    cluster: KubeCluster, ns: KubeNamespace
) -> None:
    """Each fits alone; together they do not, and the second must not move to another zone."""
    storage_class(cluster, "reserved", {"thin": "false"})
    capacities(cluster, "reserved")
    for name in ("one", "two"):
        ns.claim(name, "600Gi", storage_class="reserved")
        ns.pod(f"pod-{name}", name, node=DEFAULT)

    def one_runs(pods: list[Object]) -> str:
        running = [pod for pod in pods if pod["status"].get("phase") == "Running"]
        return str(running[0]["metadata"]["name"]) if running else ""

    first = ns.api.until("pods", one_runs, "one pod runs", namespace=ns.name)
    second = "two" if first == "pod-one" else "one"
    ns.api.until("events", is_told_full, f"why {second} waits", namespace=ns.name)
    claim = ns.api.get("persistentvolumeclaims", second, ns.name)
    assert claim is not None
    assert claim["status"]["phase"] == "Pending"
    ns.delete("pods", first)
    ns.delete("persistentvolumeclaims", first.removeprefix("pod-"))
    ns.running(f"pod-{second}")
    assert ns.backend(second) == "give"


def test_a_restore_and_a_clone_take_their_pods_to_the_zone_of_the_source(
    cluster: KubeCluster, ns: KubeNamespace
) -> None:
    ns.claim("source")
    ns.pod("writer", "source", node=ANNEX)
    ns.running("writer")
    sources = {"restored": ns.snapshot("s", "source"), "cloned": from_claim("source")}
    for name, source in sources.items():
        ns.claim(name, **source)
        ns.pod(f"pod-{name}", name)
    for name in sources:
        assert ns.node_of(f"pod-{name}").zone == "annex"
        assert ns.backend(name) == "annex"
