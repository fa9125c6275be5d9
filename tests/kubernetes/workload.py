"""A namespace with claims, pods and snapshots, in the words of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.kubernetes.api import WITHIN_S, NotInTime, named

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kubernetes.api import ApiServer, Object
    from tests.kubernetes.cluster import KubeCluster
    from tests.kubernetes.node import KubeNode

CLASS = "zfsilo"
SNAPSHOTS = "snapshot.storage.k8s.io"
ONE_NODE = ("ReadWriteOnce",)
TOLD = 12  # events in an error
GRACE_S = 1  # with 0 a pod is deleted before kubelet has unmounted its volumes


class Workload:
    """One namespace; `slowness` multiplies the time for which it waits."""

    def __init__(self, api: ApiServer, name: str, slowness: float = 1.0) -> None:
        self.api, self.name, self._slowness = api, name, slowness
        if self.api.get("namespaces", name) is None:
            self.api.create("namespaces", name)
        self.api.until(
            "serviceaccounts",
            lambda accounts: named(accounts, "default"),
            f"namespace {name} has its account",
            namespace=name,
        )

    def claim(
        self,
        name: str,
        size: str = "1Gi",
        *,
        storage_class: str = CLASS,
        modes: tuple[str, ...] = ONE_NODE,
        block: bool = False,
        **spec: Any,
    ) -> str:
        """Create a claim and return its name."""
        content = {
            "accessModes": list(modes),
            "resources": {"requests": {"storage": size}},
            "storageClassName": storage_class,
            "volumeMode": "Block" if block else "Filesystem",
            **spec,
        }
        self.api.create("persistentvolumeclaims", name, self.name, spec=content)
        return name

    def pod(
        self,
        name: str,
        *claims: str,
        node: str = "",
        block: bool = False,
        container: Object | None = None,
        **spec: Any,
    ) -> str:
        """Create a pod that uses claims, on a node if one is named, and return its name.

        `container` has more fields of its container, or other ones.
        """
        kind, path = ("volumeDevices", "devicePath") if block else ("volumeMounts", "mountPath")
        uses = [{"name": f"v{n}", path: f"/data{n}"} for n in range(len(claims))]
        volumes = [
            {"name": f"v{n}", "persistentVolumeClaim": {"claimName": claim}}
            for n, claim in enumerate(claims)
        ]
        content: Object = {
            "containers": [{"name": "main", "image": "busybox", kind: uses} | (container or {})],
            "volumes": volumes,
            "terminationGracePeriodSeconds": GRACE_S,
            "automountServiceAccountToken": False,
            "dnsPolicy": "Default",  # with another one each pod has a warning
        }
        if node:
            content["nodeSelector"] = {"kubernetes.io/hostname": node}
        self.api.create("pods", name, self.name, spec=content | spec)
        return name

    def snapshot(self, name: str, claim: str) -> Object:
        """Snapshot a claim; return what a new claim needs to be made from it."""
        source = {"persistentVolumeClaimName": claim}
        spec = {"volumeSnapshotClassName": CLASS, "source": source}
        self.api.create("volumesnapshots", name, self.name, spec=spec)
        self.until(
            "volumesnapshots",
            name,
            lambda snapshot: (snapshot.get("status") or {}).get("readyToUse"),
            "is ready",
        )
        return from_snapshot(name)

    def until(
        self,
        kind: str,
        name: str,
        condition: Callable[[Object], Any],
        what: str,
        within_s: float = WITHIN_S,
    ) -> Object:
        """Return an object as soon as a condition holds for it; an error has the events."""

        def holds(objects: list[Object]) -> Object | None:
            item = named(objects, name)
            return item if item and condition(item) else None

        text = f"{kind}/{name} {what}"
        try:
            item = self.api.until(
                kind, holds, text, namespace=self.name, within_s=within_s * self._slowness
            )
        except NotInTime as error:
            raise NotInTime("\n".join([str(error), *self.told()])) from None
        assert item is not None
        return item

    def bound(self, *claims: str, within_s: float = WITHIN_S) -> str:
        """Wait until claims are bound, and return the volume of the last one."""
        volume = ""
        for claim in claims:
            item = self.until("persistentvolumeclaims", claim, is_bound, "is bound", within_s)
            volume = str(item["spec"]["volumeName"])
        return volume

    def running(self, *pods: str, within_s: float = WITHIN_S) -> Object:
        """Wait until pods run, and return the last one."""
        item: Object = {}
        for pod in pods:
            item = self.until("pods", pod, is_running, "runs", within_s)
        return item

    def all_running(self, number: int, within_s: float) -> None:
        """Wait until exactly so many pods of the namespace run."""

        def run(pods: list[Object]) -> bool:
            return sum(map(is_running, pods)) == number

        text = f"{number} pods run"
        try:
            self.api.until(
                "pods", run, text, namespace=self.name, within_s=within_s * self._slowness
            )
        except NotInTime as error:
            raise NotInTime("\n".join([str(error), *self.told()])) from None

    def delete(self, kind: str, *names: str) -> None:
        """Delete objects and wait until they are gone."""
        for name in names:
            self.api.delete(kind, name, self.name)
        for name in names:
            self.gone(kind, name)

    def gone(self, kind: str, name: str, within_s: float = WITHIN_S) -> None:
        """Wait until an object does not exist."""
        try:
            self.api.until(
                kind,
                lambda objects: not named(objects, name),
                f"{kind}/{name} is gone",
                namespace=self.name,
                within_s=within_s * self._slowness,
            )
        except NotInTime as error:
            raise NotInTime("\n".join([str(error), *self.told()])) from None

    def detached(self, volume: str, within_s: float = WITHIN_S) -> None:
        """Wait until a volume is attached to no node."""
        self.api.until(
            "volumeattachments",
            lambda objects: volume not in map(volume_of, objects),
            f"{volume} is detached",
            within_s=within_s * self._slowness,
        )

    def warned(self, about: str, text: str, within_s: float = WITHIN_S) -> str:
        """Wait for an event about an object that has a text, and return its message."""

        def message(events: list[Object]) -> str:
            for event in events:
                if event["involvedObject"]["name"] == about and text in event["message"]:
                    return str(event["message"])
            return ""

        try:
            return self.api.until(
                "events",
                message,
                f"an event about {about}: {text}",
                namespace=self.name,
                within_s=within_s * self._slowness,
            )
        except NotInTime as error:
            raise NotInTime("\n".join([str(error), *self.told()])) from None

    def volume(self, claim: str) -> Object:
        """Return the PersistentVolume of a bound claim."""
        item = self.api.get("persistentvolumes", self.bound(claim))
        assert item is not None
        return item

    def backend(self, claim: str) -> str:
        """Return the server of a bound claim."""
        handle: str = self.volume(claim)["spec"]["csi"]["volumeHandle"]
        return handle.partition("/")[0]

    def told(self) -> list[str]:
        """Return the last events of the namespace, as lines."""
        events = self.api.objects("events", self.name)
        events.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime")))
        return [
            f"  {event['type']} {event['involvedObject']['name']} {event['reason']}: "
            f"{event['message'][:300]}"
            for event in events[-TOLD:]
        ]


class KubeNamespace(Workload):
    """One namespace of the cluster, whose volumes are folders of its nodes."""

    def __init__(self, cluster: KubeCluster, name: str) -> None:
        super().__init__(cluster.api, name)
        self.cluster = cluster

    def node_of(self, pod: str) -> KubeNode:
        """Return the node of a pod that runs."""
        return self.cluster.node(self.running(pod)["spec"]["nodeName"])

    def path(self, pod: str, claim: str) -> Path:
        """Return the folder of a claim in a pod that runs."""
        item = self.running(pod)
        node = self.cluster.node(item["spec"]["nodeName"])
        return node.volume_path(item["metadata"]["uid"], self.bound(claim))

    def device(self, pod: str, claim: str) -> Path:
        """Return the raw device of a claim in a pod that runs."""
        item = self.running(pod)
        node = self.cluster.node(item["spec"]["nodeName"])
        return node.device_path(item["metadata"]["uid"], self.bound(claim))


def from_snapshot(name: str) -> Object:
    """Return the source of a claim that is restored."""
    return {"dataSource": {"name": name, "kind": "VolumeSnapshot", "apiGroup": SNAPSHOTS}}


def from_claim(name: str) -> Object:
    """Return the source of a claim that is a clone."""
    return {"dataSource": {"name": name, "kind": "PersistentVolumeClaim"}}


def is_bound(claim: Object) -> bool:
    return bool(claim["status"].get("phase") == "Bound")


def is_running(pod: Object) -> bool:
    return bool(pod["status"].get("phase") == "Running")


def capacity(claim: Object) -> str:
    return str(claim["status"].get("capacity", {}).get("storage"))


def volume_of(attachment: Object) -> str:
    return str(attachment["spec"]["source"].get("persistentVolumeName"))
