"""Access modes: what several pods and nodes may do with one volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kubernetes.api import Object
    from tests.kubernetes.cluster import KubeCluster
    from tests.kubernetes.workload import KubeNamespace

ONE, TWO = "node1.example", "node2.example"


def test_a_raw_device_for_writers_on_two_nodes(ns: KubeNamespace) -> None:
    ns.claim("disk", modes=("ReadWriteMany",), block=True)
    for name, node in (("one", ONE), ("two", TWO)):
        ns.pod(name, "disk", node=node, block=True)
    ns.running("one", "two")


def test_a_restored_filesystem_for_readers_on_two_nodes(ns: KubeNamespace) -> None:
    ns.claim("source")
    ns.pod("writer", "source", node=ONE)
    (ns.path("writer", "source") / "file").write_text("to read")
    ns.claim("data", modes=("ReadOnlyMany",), **ns.snapshot("s", "source"))
    for name, node in (("one", ONE), ("two", TWO)):
        ns.pod(name, "data", node=node)
        file = ns.path(name, "data") / "file"
        assert file.read_text() == "to read"
        with pytest.raises(OSError, match="Read-only file system"):
            file.write_text("written")


def test_one_pod_alone(ns: KubeNamespace) -> None:
    ns.claim("data", modes=("ReadWriteOncePod",))
    ns.pod("one", "data")
    ns.running("one")
    ns.pod("two", "data")
    ns.warned("two", "ReadWriteOncePod")
    ns.delete("pods", "one")
    ns.running("two")


def test_a_volume_goes_over_to_another_node_with_its_data(ns: KubeNamespace) -> None:
    ns.claim("data")
    ns.pod("one", "data", node=ONE)
    (ns.path("one", "data") / "file").write_text("moved")
    ns.pod("two", "data", node=TWO)
    ns.warned("two", "already used by pod")
    ns.delete("pods", "one")
    assert (ns.path("two", "data") / "file").read_text() == "moved"


def test_a_volume_of_one_node_becomes_one_of_one_pod(
    cluster: KubeCluster, ns: KubeNamespace
) -> None:
    """The steps of Kubernetes' own documentation: keep the volume, change it, claim it again."""
    api = cluster.api
    ns.claim("data")
    ns.pod("one", "data")
    (ns.path("one", "data") / "file").write_text("kept")
    volume = ns.bound("data")
    retained: Object = {"spec": {"persistentVolumeReclaimPolicy": "Retain"}}
    api.patch("persistentvolumes", volume, retained)
    ns.delete("pods", "one")
    ns.delete("persistentvolumeclaims", "data")
    change: Object = {"spec": {"claimRef": None, "accessModes": ["ReadWriteOncePod"]}}
    api.patch("persistentvolumes", volume, change)
    ns.claim("data", modes=("ReadWriteOncePod",), volumeName=volume)
    ns.pod("two", "data")
    assert (ns.path("two", "data") / "file").read_text() == "kept"
    deleted: Object = {"spec": {"persistentVolumeReclaimPolicy": "Delete"}}
    api.patch("persistentvolumes", volume, deleted)
