"""One pod at a time: on emulated processors several do not start beside each other."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tests.kubernetes.api import named
from tests.kubernetes.lab.progress import say

if TYPE_CHECKING:
    from tests.kubernetes.api import Object
    from tests.kubernetes.lab.cluster import LabCluster
    from tests.kubernetes.lab.volumes import PodVolume
    from tests.kubernetes.workload import Workload

CLAIMS = "persistentvolumeclaims"
DROP_CACHES = "sync; echo 3 > /proc/sys/vm/drop_caches"  # so that a read asks the server
GONE_S = 600
NOTHING = hashlib.sha256().hexdigest()


class OnePod:
    """A pod that uses the claim of its name. Another one starts after it is gone."""

    def __init__(self, lab: LabCluster, work: Workload) -> None:
        self._lab, self._work = lab, work
        self._sums: dict[str, str] = {}  # of the data that were written last, by claim

    def use(self, volume: PodVolume, name: str = "", **source: Any) -> Object:
        """Return the pod of a volume, or of another claim of its kind, as soon as it runs.

        Claim and pod are created unless they exist; `source` is that of the new claim.
        """
        name = name or volume.name
        pods = self._work.api.objects("pods", self._work.name)
        if not named(pods, name):
            self.remove()
            if self._work.api.get(CLAIMS, name, self._work.name) is None:
                kind: dict[str, Any] = {
                    "storage_class": volume.storage_class,
                    "block": volume.block,
                }
                self._work.claim(name, **kind, **source)
            say(f"pod {name}: created")
            self._work.pod(name, name, block=volume.block, container=volume.container)
        pod = self._work.running(name)
        say(f"pod {name}: runs; {self._events(pod)}")
        return pod

    def remove(self) -> None:
        """Delete all pods, and wait until no volume is attached."""
        pods = [pod["metadata"]["name"] for pod in self._work.api.objects("pods", self._work.name)]
        self._work.delete("pods", *pods)
        for pod in pods:
            say(f"pod {pod}: gone")
        self._until_none("volumeattachments")
        if pods:
            say("no volume is attached")

    def remove_claims(self, *names: str) -> None:
        """Delete claims, and wait until their volumes are gone."""
        claims = [self._work.api.get(CLAIMS, name, self._work.name) or {} for name in names]
        volumes = {claim["spec"].get("volumeName") for claim in claims if claim}
        self._work.delete(CLAIMS, *names)
        self._until_none("persistentvolumes", volumes)
        say(f"claims and volumes are gone: {', '.join(names)}")

    def remove_snapshot(self, name: str) -> None:
        """Delete a snapshot, and wait until the driver has deleted it."""
        self._work.delete("volumesnapshots", name)
        self._until_none("volumesnapshotcontents")
        say(f"snapshot {name}: gone")

    def write(self, volume: PodVolume) -> str:
        """Write random data to the volume of the pod, and return their checksum."""
        checksum = self._run(volume.name, volume.write).split()[0]
        assert checksum != NOTHING
        self._sums[volume.name] = checksum
        say(f"pod {volume.name}: has written {checksum[:8]}")
        return checksum

    def written(self, volume: PodVolume) -> str:
        """Return the checksum of the data that were written last; write some if none were."""
        return self._sums.get(volume.name) or self.write(volume)

    def read(self, volume: PodVolume, name: str = "") -> str:
        """Return the checksum of the data of the pod, which are read from the server."""
        name = name or volume.name
        self._lab.node.machine.sh(DROP_CACHES, timeout_s=GONE_S)
        checksum = self._run(name, volume.read).split()[0]
        say(f"pod {name}: reads {checksum[:8]}")
        return checksum

    def number(self, volume: PodVolume, above: int = 0) -> int:
        """Wait until the pod has written a number above another one, and return it."""
        number = int(self._run(volume.name, volume.wait(above)))
        say(f"pod {volume.name}: writes {number}")
        return number

    def _until_none(self, kind: str, names: set[str] | None = None) -> None:
        """Wait until no object of a kind exists, or none of some names."""

        def none(objects: list[Object]) -> bool:
            left = {item["metadata"]["name"] for item in objects}
            return not (left if names is None else left & names)

        self._lab.api.until(kind, none, f"no {kind} are left", within_s=GONE_S)

    def _run(self, name: str, script: str) -> str:
        pod = self._work.running(name)
        return self._lab.node.run_in(pod, "/bin/busybox", "sh", "-c", script).stdout

    def _events(self, pod: Object) -> str:
        """Return the events of a pod with the seconds since its creation."""
        created = seconds(pod["metadata"]["creationTimestamp"])
        words = []
        for event in self._work.api.objects("events", self._work.name):
            if event["involvedObject"].get("uid") == pod["metadata"]["uid"]:
                at = event.get("firstTimestamp") or event["eventTime"]
                message = f" ({event['message']})" if event["type"] == "Warning" else ""
                words.append((seconds(at) - created, event["reason"] + message))
        return ", ".join(f"{reason} {after:.0f} s" for after, reason in sorted(words))


def seconds(timestamp: str) -> float:
    """Return the seconds of a timestamp since 1970."""
    return datetime.fromisoformat(timestamp).timestamp()
