"""The volumes of the tests: their claims, and what the pods do with them."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.kubernetes.lab.cluster import TRANSPORTS
from tests.setup.kubelet import BUSYBOX

BUSY = "/bin/busybox"
PATH = "/data0"  # of the first claim of a pod
SIZE_MIB = 4
MIB = 1 << 20
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
# The checksum is that of the data on their way, not of the volume.
WRITE = f"""
{BUSY} dd if=/dev/urandom bs=1M count={SIZE_MIB} | {BUSY} tee {{data}} | {BUSY} sha256sum
{BUSY} sync
"""
READ = f"{BUSY} dd if={{data}} bs=1M count={SIZE_MIB} | {BUSY} sha256sum"
# Prints the first number above another one. No event tells that a pod has written.
WAIT = f"""
until n=$({BUSY} dd if={{target}} bs=16 skip={{seek}} count=1) && [ "$n" -gt {{above}} ]; do
    {BUSY} sleep 1
done 2>/dev/null
echo $n
"""


class PodVolume(NamedTuple):
    """A volume of one transport, as a filesystem or as a device."""

    transport: str
    block: bool

    @property
    def name(self) -> str:
        """The name of its claim."""
        return f"{self.transport}-{'device' if self.block else 'files'}"

    @property
    def storage_class(self) -> str:
        return TRANSPORTS[self.transport]

    @property
    def container(self) -> dict[str, Any]:
        """The container that uses it: it writes numbers until a write fails."""
        script = WRITER.format(**self._place())
        return {"image": BUSYBOX, "command": [BUSY, "sh", "-c", script]}

    @property
    def write(self) -> str:
        """The script that writes random data, and prints their checksum."""
        return WRITE.format(**self._place())

    @property
    def read(self) -> str:
        """The script that prints the checksum of the data."""
        return READ.format(**self._place())

    def wait(self, above: int) -> str:
        """Return the script that waits for a number above another one, and prints it."""
        return WAIT.format(above=above, **self._place())

    def _place(self) -> dict[str, Any]:
        """Return the paths of data and number in the pod, and the number's place in its file."""
        if self.block:
            return {"data": PATH, "target": PATH, "seek": SIZE_MIB * MIB // 16}
        return {"data": f"{PATH}/data", "target": f"{PATH}/number", "seek": 0}


ISCSI_FILES = PodVolume("iscsi", block=False)
NVME_DEVICE = PodVolume("nvme", block=True)
VOLUMES = [ISCSI_FILES, PodVolume("iscsi", block=True), PodVolume("nvme", block=False), NVME_DEVICE]
