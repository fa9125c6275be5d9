"""The volumes of the test: a pod that writes to each, and commands in this pod."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tests.kubernetes.lab.cluster import TRANSPORTS
from tests.setup.kubelet import BUSYBOX

if TYPE_CHECKING:
    from tests.kubernetes.lab.cluster import LabCluster
    from tests.kubernetes.workload import Workload

BUSY = "/bin/busybox"
PATH = "/data0"  # of the first claim of a pod
SIZE_MIB = 4
# Writes an increasing number, to a file or behind the data of a device, until a write fails: then
# kubelet starts the container again, and counts it.
WRITER = f"""
n=0
while :; do
    n=$((n + 1))
    printf '%016d' $n | {BUSY} dd of={{target}} bs=16 seek={{seek}} conv=notrunc,fsync || exit 1
    {BUSY} sleep 1
done
"""
DROP_CACHES = "sync; echo 3 > /proc/sys/vm/drop_caches"  # so that a read asks the server
MIB = 1 << 20


class PodVolume(NamedTuple):
    """A claim and the pod that uses it; both have the same name."""

    transport: str
    block: bool

    @property
    def name(self) -> str:
        return f"{self.transport}-{'device' if self.block else 'files'}"

    @property
    def data(self) -> str:
        """The path of the data in the pod."""
        return PATH if self.block else f"{PATH}/data"

    def use(self, work: Workload, **spec: Any) -> None:
        """Create the claim and the pod."""
        self.claim(work, self.name, **spec)
        self.start(work, self.name, self.writer())

    def claim(self, work: Workload, name: str, **spec: Any) -> None:
        """Create a claim of the same kind."""
        storage_class = TRANSPORTS[self.transport]
        work.claim(name, storage_class=storage_class, block=self.block, **spec)

    def start(self, work: Workload, name: str, script: str) -> None:
        """Create a pod that uses the claim of its name and runs a script."""
        container = {"image": BUSYBOX, "command": [BUSY, "sh", "-c", script]}
        work.pod(name, name, block=self.block, container=container)

    def writer(self) -> str:
        """Return the script of the pod."""
        return WRITER.format(**self._number_at())

    def write(self, lab: LabCluster, work: Workload) -> str:
        """Write random data and return their checksum."""
        words = [f"of={self.data}", "bs=1M", f"count={SIZE_MIB}", "conv=notrunc,fsync"]
        pod = work.running(self.name)
        lab.node.run_in(pod, BUSY, "dd", "if=/dev/urandom", *words)
        return self.checksum(lab, work, self.name)

    def checksum(self, lab: LabCluster, work: Workload, name: str) -> str:
        """Return the checksum of the data, which are read from the server."""
        lab.node.machine.sh(DROP_CACHES, timeout_s=300)
        script = f"{BUSY} dd if={self.data} bs=1M count={SIZE_MIB} | {BUSY} sha256sum"
        done = lab.node.run_in(work.running(name), BUSY, "sh", "-c", script)
        return done.stdout.split()[0]

    def _number_at(self) -> dict[str, Any]:
        if self.block:
            return {"target": PATH, "seek": SIZE_MIB * MIB // 16}
        return {"target": f"{PATH}/number", "seek": 0}


VOLUMES = [PodVolume("iscsi", block=False)]
