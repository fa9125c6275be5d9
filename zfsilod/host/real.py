"""The real host: every adapter, put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.errors import FailedPrecondition
from zfsilod.host.block import RealBlock
from zfsilod.host.disks import Disks
from zfsilod.host.iscsi import RealIscsi
from zfsilod.host.lio import RealLio
from zfsilod.host.mount import RealMounts
from zfsilod.host.nodes import Nodes
from zfsilod.host.run import TOOLS, Runner
from zfsilod.host.zfs import RealZfs

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.host import Host
    from zfsilod.secret import Chap

SERVER_TOOLS = ("zfs", "udevadm", "modprobe")
CONSUMER_TOOLS = (
    "iscsiadm", "mount", "umount", "blkid", "mkfs.ext4", "e2fsck", "resize2fs",
)  # fmt: skip
XFS_TOOLS = ("mkfs.xfs", "xfs_repair", "xfs_growfs")  # only for those who want XFS


class RealHost:
    """This machine."""

    def __init__(self, chap: Callable[[str], Chap], run: Runner) -> None:
        disks = Disks()
        self.zfs = RealZfs(run)
        self.lio = RealLio(run, self.zfs.device)
        self.iscsi = RealIscsi(run, disks, Nodes())
        self.block = RealBlock(run, disks)
        self.mounts = RealMounts(run, disks)
        self.chap = chap


def real_host(chap: Callable[[str], Chap], *, inherit: tuple[int, ...] = ()) -> Host:
    """Return this machine; its tools inherit these descriptors (the operation's lock)."""
    return RealHost(chap, Runner(inherit))


def missing_tools(names: tuple[str, ...]) -> dict[str, str]:
    """Return those tools that are not installed here, with the Debian package of each."""
    run = Runner()
    missing = {}
    for name in names:
        try:
            run.find(name)
        except FailedPrecondition:
            missing[name] = TOOLS[name]
    return missing
