"""The commands of the documentation, typed as they stand, and the example that they install."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kubernetes.api import named
from tests.kubernetes.cluster import PAGE, commands_of
from tests.kubernetes.conftest import README
from tests.kubernetes.workload import GRACE_S, is_running

if TYPE_CHECKING:
    from tests.kubernetes.cluster import KubeCluster
    from tests.kubernetes.workload import KubeNamespace

SMALL = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
SET_NAME = "web"


def test_the_example_of_the_readme_runs_and_leaves_nothing(cluster: KubeCluster) -> None:
    """The fixture has typed the README's commands, of which the last creates the pod."""
    pods = cluster.api.until(
        "pods",
        lambda pods: [pod for pod in pods if is_running(pod)],
        "the example's pod runs",
        namespace="default",
    )
    claim = cluster.api.get("persistentvolumeclaims", "data", "default")
    assert claim is not None
    volume = claim["spec"]["volumeName"]
    node = cluster.node(named(pods, "writer")["spec"]["nodeName"])
    folder = node.volume_path(named(pods, "writer")["metadata"]["uid"], volume)
    assert folder.stat().st_gid == 1000, "fsGroup of the pod"
    cluster.type_in("kubectl delete -f csi/deploy/examples/pod.yaml")
    cluster.api.until(
        "persistentvolumes", lambda objects: not named(objects, volume), f"{volume} is deleted"
    )
    assert not [mount for mount in node.csi_mounts() if volume in mount]


def test_the_page_has_the_commands_of_the_readme() -> None:
    assert commands_of(PAGE, "## Install") == commands_of(*README)


def test_the_shipped_class_serves_a_stateful_set(ns: KubeNamespace) -> None:
    pod = {
        "containers": [
            {
                "name": "main",
                "image": "busybox",
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }
        ],
        "terminationGracePeriodSeconds": GRACE_S,
        "automountServiceAccountToken": False,
        "dnsPolicy": "Default",
    }
    spec = {
        "serviceName": SET_NAME,
        "replicas": 2,
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": {"app": SET_NAME}},
        "template": {"metadata": {"labels": {"app": SET_NAME}}, "spec": pod},
        "volumeClaimTemplates": [
            {"metadata": {"name": "data"}, "spec": SMALL | {"storageClassName": "zfsilo"}}
        ],
    }
    ns.api.create("statefulsets", SET_NAME, ns.name, spec=spec)
    ns.running("web-0", "web-1")
    (ns.path("web-0", "data-web-0") / "file").write_text("kept")
    ns.api.delete("pods", "web-0", ns.name)
    ns.until("pods", "web-0", lambda pod: not is_running(pod), "starts again")
    assert (ns.path("web-0", "data-web-0") / "file").read_text() == "kept"
