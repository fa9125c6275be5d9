"""Claims of both kinds, in both binding modes: provisioned, used, refused with a clear event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.kubernetes.cluster import PAGE, commands_of
from tests.kubernetes.objects import storage_class
from tests.kubernetes.workload import KubeNamespace

if TYPE_CHECKING:
    from tests.kubernetes.cluster import KubeCluster

ZONE = "topology.zfsilo.io/zone"
LONGEST = ".".join(("l" * 50, "m" * 60, "n" * 60, "o" * 60))  # 233 characters
LONG_POD = ".".join(letter * 60 for letter in "pqr")


def test_a_filesystem_for_two_pods_of_a_node(ns: KubeNamespace) -> None:
    ns.claim("data")
    ns.pod("one", "data", securityContext={"fsGroup": 2000})
    node = ns.node_of("one")
    ns.pod("two", "data", node=node.name)
    (ns.path("one", "data") / "file").write_text("shared")
    assert ns.path("one", "data").stat().st_gid == 2000
    assert (ns.path("two", "data") / "file").read_text() == "shared"
    volume = ns.volume("data")
    assert volume["spec"]["csi"]["volumeHandle"] in ns.cluster.volumes()
    terms = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert [one["values"] for term in terms for one in term["matchExpressions"]] == [[node.zone]]
    ns.delete("pods", "one", "two")
    ns.detached(volume["metadata"]["name"])
    assert not [path for path in node.csi_mounts() if volume["metadata"]["name"] in path]


def test_a_raw_device(ns: KubeNamespace) -> None:
    ns.claim("disk", block=True)
    ns.pod("pod", "disk", block=True)
    assert ns.device("pod", "disk").is_block_device()


def test_an_immediate_claim_takes_its_pod_to_its_zone(
    cluster: KubeCluster, ns: KubeNamespace
) -> None:
    storage_class(cluster, "immediate", volumeBindingMode="Immediate")
    ns.claim("data", storage_class="immediate")
    ns.bound("data")
    ns.pod("pod", "data")
    assert cluster.server_of(ns.node_of("pod")).name == ns.backend("data")


@pytest.mark.parametrize("zone", ["default", "annex"])
def test_a_zone_of_the_class(cluster: KubeCluster, ns: KubeNamespace, zone: str) -> None:
    terms = [{"matchLabelExpressions": [{"key": ZONE, "values": [zone]}]}]
    storage_class(cluster, f"in-{zone}", allowedTopologies=terms, volumeBindingMode="Immediate")
    ns.claim("data", storage_class=f"in-{zone}")
    server = next(one for one in cluster.servers.values() if one.zone == zone)
    assert ns.backend("data") == server.name


def test_a_backend_of_the_class(cluster: KubeCluster, ns: KubeNamespace) -> None:
    storage_class(cluster, "on-annex", {"backend": "annex"})
    ns.claim("data", storage_class="on-annex")
    ns.pod("pod", "data")
    assert ns.node_of("pod").zone == "annex"
    assert ns.backend("data") == "annex"


def test_xfs_with_mount_options(cluster: KubeCluster, ns: KubeNamespace) -> None:
    options = ["noatime", "discard"]
    parameters = {"csi.storage.k8s.io/fstype": "xfs"}
    storage_class(cluster, "xfs", parameters, mountOptions=options)
    ns.claim("data", storage_class="xfs")
    ns.pod("pod", "data")
    ns.running("pod")
    assert ns.volume("data")["spec"]["csi"]["fsType"] == "xfs"
    assert ns.volume("data")["spec"]["mountOptions"] == options


@pytest.mark.parametrize(
    ("parameters", "fields", "claim", "text"),
    [
        ({"nonsense": "1"}, {}, {}, "unknown parameter 'nonsense'"),
        ({"csi.storage.k8s.io/fstype": "btrfs"}, {}, {}, "btrfs"),
        ({}, {"mountOptions": ["nonsense"]}, {}, "nonsense"),
        ({}, {}, {"modes": ("ReadWriteMany",)}, "block"),
        ({}, {}, {"modes": ("ReadOnlyMany",)}, "without a source"),
        ({"backend": "nowhere"}, {}, {}, "nowhere"),
        ({}, {}, {"size": "900Ti"}, "ResourceExhausted"),
    ],
    ids=["parameter", "filesystem", "option", "many-writers", "only-read", "backend", "size"],
)
def test_a_wrong_claim_is_told_why(
    cluster: KubeCluster,
    ns: KubeNamespace,
    parameters: dict[str, str],
    fields: dict[str, Any],
    claim: dict[str, Any],
    text: str,
) -> None:
    storage_class(cluster, ns.name, parameters, volumeBindingMode="Immediate", **fields)
    ns.claim("data", storage_class=ns.name, **claim)
    ns.warned("data", text)
    assert not [volume for volume in cluster.api.objects("persistentvolumes") if claims(volume, ns)]


def claims(volume: dict[str, Any], ns: KubeNamespace) -> bool:
    return bool(volume["spec"].get("claimRef", {}).get("namespace") == ns.name)


def test_names_as_long_as_they_may_be(cluster: KubeCluster) -> None:
    ns = KubeNamespace(cluster, "s" * 63)
    ns.claim(LONGEST)
    ns.pod(LONG_POD, LONGEST)
    ns.running(LONG_POD)
    ns.snapshot(LONGEST, LONGEST)
    cluster.api.delete("namespaces", ns.name)


def test_an_ephemeral_volume_goes_with_its_pod(ns: KubeNamespace) -> None:
    template = {
        "spec": {
            "storageClassName": "zfsilo",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        }
    }
    mount = {"name": "v", "mountPath": "/d", "subPath": "sub/folder"}
    ns.pod(
        "pod",
        containers=[{"name": "main", "image": "busybox", "volumeMounts": [mount]}],
        volumes=[{"name": "v", "ephemeral": {"volumeClaimTemplate": template}}],
    )
    assert (ns.path("pod", "pod-v") / "sub/folder").is_dir()
    ns.delete("pods", "pod")
    ns.gone("persistentvolumeclaims", "pod-v")


def test_an_inline_volume_is_refused(ns: KubeNamespace) -> None:
    mount = {"name": "v", "mountPath": "/d"}
    ns.pod(
        "pod",
        node="node1.example",
        containers=[{"name": "main", "image": "busybox", "volumeMounts": [mount]}],
        volumes=[{"name": "v", "csi": {"driver": "csi.zfsilo.io"}}],
    )
    ns.warned("pod", "Ephemeral")


def test_a_volume_that_was_created_by_hand(cluster: KubeCluster) -> None:
    """The example of a static volume, typed as the page says, on a node of its zone."""
    create, apply = commands_of(PAGE, "## Existing volumes")
    cluster.servers["give"].ctl(*create.split()[2:])
    cluster.type_in(apply)
    default = KubeNamespace(cluster, "default")
    default.pod("static", "existing")
    assert default.node_of("static").zone == "default"
    default.delete("pods", "static")
    default.detached("data")
    cluster.type_in("kubectl delete -f csi/deploy/examples/static.yaml")
    assert "data" in cluster.servers["give"].volumes(), "the volume is kept"
    cluster.servers["give"].ctl("volume", "delete", "data", "--yes")
