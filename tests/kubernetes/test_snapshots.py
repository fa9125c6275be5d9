"""Snapshots, restores, clones and groups, with what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.kubernetes.objects import DRIVER
from tests.kubernetes.workload import CLASS, capacity, from_claim, from_snapshot

if TYPE_CHECKING:
    from tests.kubernetes.api import Object
    from tests.kubernetes.cluster import KubeCluster
    from tests.kubernetes.workload import KubeNamespace

GROUP = {"matchLabels": {"group": "g"}}


def write(ns: KubeNamespace, claim: str, text: str) -> None:
    """Write a file in a new claim, by a pod of its own."""
    ns.claim(claim)
    ns.pod(f"writer-{claim}", claim)
    (ns.path(f"writer-{claim}", claim) / "file").write_text(text)


def read(ns: KubeNamespace, claim: str) -> str:
    """Return what is in the file of a claim, by a pod of its own."""
    ns.pod(f"reader-{claim}", claim)
    return (ns.path(f"reader-{claim}", claim) / "file").read_text()


def test_restore_and_clone_outlive_their_source(ns: KubeNamespace) -> None:
    write(ns, "source", "before")
    snapshot = ns.snapshot("s", "source")
    (ns.path("writer-source", "source") / "file").write_text("after")
    ns.claim("restored", **snapshot)
    ns.claim("cloned", "2Gi", **from_claim("source"))
    assert read(ns, "restored") == "before"
    assert read(ns, "cloned") == "after"
    ns.until("persistentvolumeclaims", "cloned", lambda c: capacity(c) == "2Gi", "is larger")
    ns.delete("pods", "writer-source")
    ns.delete("persistentvolumeclaims", "source")
    ns.delete("volumesnapshots", "s")
    assert (ns.path("reader-restored", "restored") / "file").read_text() == "before"


def test_a_restore_that_is_too_small_is_told_why(ns: KubeNamespace) -> None:
    ns.claim("source", "2Gi")
    ns.pod("pod", "source")
    ns.running("pod")
    ns.claim("small", "1Gi", **ns.snapshot("s", "source"))
    ns.pod("reader", "small")
    ns.warned("small", "less than the size")


def test_a_snapshot_that_was_taken_by_hand(cluster: KubeCluster, ns: KubeNamespace) -> None:
    give = cluster.servers["give"]
    give.ctl("volume", "create", "by-hand", "1G")
    give.ctl("snapshot", "create", "by-hand", "taken")
    static_snapshot(ns, "taken", "give/taken", "Retain")
    snapshot = ns.until("volumesnapshots", "taken", ready, "is ready")
    assert snapshot["status"]["restoreSize"] == "1Gi"
    ns.claim("data", **from_snapshot("taken"))
    ns.pod("pod", "data")
    ns.running("pod")
    ns.delete("pods", "pod")
    ns.delete("persistentvolumeclaims", "data")
    ns.delete("volumesnapshots", "taken")
    cluster.api.delete("volumesnapshotcontents", f"{ns.name}-taken")
    cluster.no_volume_of(ns.name)  # the clone is deleted after its claim
    give.ctl("snapshot", "delete", "taken")
    give.ctl("volume", "delete", "by-hand", "--yes")


def test_an_unknown_snapshot_is_told(ns: KubeNamespace) -> None:
    static_snapshot(ns, "unknown", "give/nothing", "Delete")
    ns.until(
        "volumesnapshots",
        "unknown",
        lambda snapshot: (
            "can not find snapshot" in str((snapshot.get("status") or {}).get("error"))
        ),
        "has an error",
    )
    ns.delete("volumesnapshots", "unknown")


def test_a_group_is_taken_restored_and_deleted_as_one(ns: KubeNamespace) -> None:
    for claim in ("one", "two"):
        ns.claim(claim)
        ns.api.patch(
            "persistentvolumeclaims", claim, {"metadata": {"labels": {"group": "g"}}}, ns.name
        )
    ns.pod("pod", "one", "two")
    (ns.path("pod", "one") / "file").write_text("one")
    (ns.path("pod", "two") / "file").write_text("two")
    spec = {"volumeGroupSnapshotClassName": CLASS, "source": {"selector": GROUP}}
    ns.api.create("volumegroupsnapshots", "g", ns.name, spec=spec)
    ns.until("volumegroupsnapshots", "g", ready, "is ready")
    members = ns.api.until(
        "volumesnapshots",
        lambda objects: objects if len(objects) == 2 and all(map(ready, objects)) else [],
        "both members are ready",
        namespace=ns.name,
    )
    texts = []
    for number, member in enumerate(members):
        ns.claim(f"restored-{number}", **from_snapshot(member["metadata"]["name"]))
        texts.append(read(ns, f"restored-{number}"))
    assert sorted(texts) == ["one", "two"]
    ns.delete("volumegroupsnapshots", "g")
    ns.api.until(
        "volumesnapshots", lambda objects: not objects, "members are gone", namespace=ns.name
    )


def static_snapshot(ns: KubeNamespace, name: str, handle: str, policy: str) -> None:
    """Create a snapshot object for a handle."""
    content = f"{ns.name}-{name}"
    spec: Object = {
        "deletionPolicy": policy,
        "driver": DRIVER,
        "source": {"snapshotHandle": handle},
        "sourceVolumeMode": "Filesystem",
        "volumeSnapshotRef": {"name": name, "namespace": ns.name},
    }
    ns.api.create("volumesnapshotcontents", content, spec=spec)
    source = {"volumeSnapshotContentName": content}
    ns.api.create("volumesnapshots", name, ns.name, spec={"source": source})


def ready(snapshot: Object) -> Any:
    return (snapshot.get("status") or {}).get("readyToUse")
