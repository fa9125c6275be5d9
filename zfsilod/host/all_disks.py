"""The disks of sessions of any transport, for adapters that use them as block devices."""

from __future__ import annotations

from zfsilod.host.disks import Disks
from zfsilod.model.lean import TYPE_CHECKING, contextmanager

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host.device import Device
    from zfsilod.host.maps import MapDevice
    from zfsilod.host.nvme_disks import NvmeDisks
    from zfsilod.model.host_facts import Disk


class AllDisks(Disks):
    """The disks of this host, of every transport, for those who use them as block devices."""

    def find(self, target: str) -> Device | None:
        """Return the disk of a target; None when it has no session or no disk."""
        return self._nvme.find(target) if _is_nvme(target) else super().find(target)

    def joined(self, target: str) -> MapDevice | None:
        """Return the map of an iSCSI target; the kernel joins the paths of NVMe by itself."""
        return None if _is_nvme(target) else super().joined(target)

    def need(self, disk: Disk) -> Device:
        """Return the device of a disk, as Disks.need() and NvmeDisks.need()."""
        return self._nvme.need(disk) if _is_nvme(disk.target) else super().need(disk)

    @contextmanager
    def hurried(self, target: str) -> Iterator[None]:
        """Let I/O fail soon when the session is lost meanwhile, so that no unmount hangs in it."""
        with self._nvme.hurried(target) if _is_nvme(target) else super().hurried(target):
            yield

    @property
    def _nvme(self) -> NvmeDisks:
        from zfsilod.host.nvme_disks import NvmeDisks

        return NvmeDisks(self.sys, self.dev, self.run)


def _is_nvme(target: str) -> bool:
    return target.startswith("nqn.")
