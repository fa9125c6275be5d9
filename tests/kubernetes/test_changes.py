"""Volumes that change: larger ones, and other attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kubernetes.objects import attributes_class
from tests.kubernetes.workload import capacity

if TYPE_CHECKING:
    from tests.kubernetes.api import Object
    from tests.kubernetes.cluster import KubeCluster
    from tests.kubernetes.workload import KubeNamespace

CLAIMS = "persistentvolumeclaims"
ARCHIVE = "zfsilo-archive"


def resize(ns: KubeNamespace, claim: str, size: str) -> None:
    change = {"spec": {"resources": {"requests": {"storage": size}}}}
    ns.api.patch(CLAIMS, claim, change, ns.name)


def change_class(ns: KubeNamespace, claim: str, name: str) -> None:
    change = {"spec": {"volumeAttributesClassName": name}}
    ns.api.patch(CLAIMS, claim, change, ns.name)


def current_class(claim: Object) -> str:
    return str(claim["status"].get("currentVolumeAttributesClassName"))


def modification(claim: Object) -> str:
    return str((claim["status"].get("modifyVolumeStatus") or {}).get("status"))


@pytest.mark.parametrize("block", [False, True], ids=["filesystem", "block"])
def test_a_volume_grows_under_its_pod(ns: KubeNamespace, block: bool) -> None:
    ns.claim("data", block=block)
    ns.pod("pod", "data", block=block)
    ns.running("pod")
    resize(ns, "data", "2Gi")
    ns.until(CLAIMS, "data", lambda claim: capacity(claim) == "2Gi", "has 2 GiB")


def test_a_volume_grows_without_a_pod(cluster: KubeCluster, ns: KubeNamespace) -> None:
    """The server grows it at once, the filesystem grows with the next pod."""
    ns.claim("data")
    ns.pod("pod", "data")
    ns.running("pod")
    ns.delete("pods", "pod")
    ns.detached(ns.bound("data"))
    resize(ns, "data", "2Gi")
    ns.until(
        CLAIMS,
        "data",
        lambda claim: "FileSystemResizePending" in str(claim["status"].get("conditions")),
        "waits for a pod",
    )
    assert ns.volume("data")["spec"]["capacity"]["storage"] == "2Gi"
    ns.pod("again", "data")
    ns.until(CLAIMS, "data", lambda claim: capacity(claim) == "2Gi", "has 2 GiB")


def test_another_class_of_attributes(cluster: KubeCluster, ns: KubeNamespace) -> None:
    attributes_class(cluster, "infeasible", {"zfs.compression": "nonsense"})
    ns.claim("data")
    ns.pod("pod", "data")
    ns.running("pod")
    change_class(ns, "data", ARCHIVE)
    ns.until(CLAIMS, "data", lambda claim: current_class(claim) == ARCHIVE, "has the class")
    change_class(ns, "data", "infeasible")
    ns.until(CLAIMS, "data", lambda c: modification(c) == "Infeasible", "is refused")
    change_class(ns, "data", ARCHIVE)
    ns.until(CLAIMS, "data", lambda c: modification(c) == "None", "has its class again")


def test_a_class_of_attributes_from_the_start(ns: KubeNamespace) -> None:
    ns.claim("data", volumeAttributesClassName=ARCHIVE)
    ns.pod("pod", "data")
    ns.running("pod")
    ns.until(CLAIMS, "data", lambda claim: current_class(claim) == ARCHIVE, "has the class")
