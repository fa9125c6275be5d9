"""The real host: its adapters, each imported and made at its first use.

A server never imports the adapters of a client, nor a client those of a server.
"""

from __future__ import annotations

from zfsilod.host.run import Runner
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.host import HostAdapters
    from zfsilod.host.block import RealBlock
    from zfsilod.host.io_limits import RealIoLimits
    from zfsilod.host.iscsi import RealIscsi
    from zfsilod.host.keys import RealKeys
    from zfsilod.host.lio import RealLio
    from zfsilod.host.mount import RealMounts
    from zfsilod.host.nvme import RealNvme
    from zfsilod.host.nvmet import RealNvmet
    from zfsilod.host.replicas import RealReplicas
    from zfsilod.host.server_protocols import KeyStore
    from zfsilod.host.snapshots import RealSnapshots
    from zfsilod.host.zfs import RealZfs
    from zfsilod.model.chap import Chap

CONFIGFS = "/sys/kernel/config/target"
NVMET = "/sys/kernel/config/nvmet"


class RealHost:
    """This machine."""

    zfs: RealZfs
    snapshots: RealSnapshots
    keys: RealKeys
    replicas: RealReplicas
    lio: RealLio
    nvmet: RealNvmet
    limits: RealIoLimits
    iscsi: RealIscsi
    nvme: RealNvme
    block: RealBlock
    mounts: RealMounts

    def __init__(
        self,
        chap: Callable[[str], Chap],
        key_store: KeyStore,
        run: Runner,
        open_stream: Callable[[str], int] | None = None,
    ) -> None:
        self.chap = chap
        self.key_store = key_store
        self._run = run
        self._surveyed = False
        self._open_stream = open_stream

    def __getattr__(self, name: str) -> object:
        """Make an adapter at its first use, and keep it as an attribute."""
        adapter = self._make(name)
        setattr(self, name, adapter)
        return adapter

    def machine_id(self) -> str:
        """Return the id of the machine for zfsilo: 32 hex digits. Raises Unavailable without."""
        from zfsilod.host.machine_id import machine_id

        return machine_id()

    def calendar_problem(self, calendar: str) -> str:
        """Return why systemd accepts no OnCalendar= of this text, or it is never due; "": none."""
        from zfsilod.host.calendar import calendar_problem

        return calendar_problem(self._run, calendar)

    def calendar_due(self, calendar: str, after: int) -> int:
        """Return when OnCalendar= is due for the second time after a time; 0: never."""
        from zfsilod.host.calendar import calendar_due

        return calendar_due(self._run, calendar, after)

    def surveyed(self, datasets: tuple[str, ...]) -> HostAdapters:
        """Return this host with the zvols of these datasets read in advance, in one process."""
        from zfsilod.host.zvol_survey import SurveyedZfs

        zfs = SurveyedZfs(self._run, datasets)
        copy = RealHost(self.chap, self.key_store, zfs.run, self._open_stream)
        copy.zfs = zfs
        copy._surveyed = True
        return copy

    def _make(self, name: str) -> object:
        match name:
            case "zfs":
                from zfsilod.host.zfs import RealZfs

                return RealZfs(self._run)
            case "snapshots":
                from zfsilod.host.snapshots import RealSnapshots

                return RealSnapshots(self._run, self.zfs)
            case "keys":
                from zfsilod.host.keys import RealKeys

                return RealKeys(self._run, self.zfs)
            case "replicas":
                from zfsilod.host.replicas import RealReplicas

                return RealReplicas(self._run, self.zfs, self._open_stream)
            case "lio":
                from zfsilod.host.configfs import Configfs
                from zfsilod.host.lio import RealLio

                return RealLio(self._run, self.zfs.device, Configfs(CONFIGFS))
            case "nvmet":
                from zfsilod.host.configfs import Configfs
                from zfsilod.host.nvmet import RealNvmet

                fs = Configfs(NVMET, "the kernel's NVMe target")
                return RealNvmet(self._run, self.zfs.device, fs)
            case "limits":
                from zfsilod.host.configfs import Configfs
                from zfsilod.host.io_limits import GROUPS, RealIoLimits

                groups = Configfs(GROUPS, "the kernel's control groups")
                surveyed = self._surveyed
                return RealIoLimits(self._run, groups, Configfs(CONFIGFS), surveyed=surveyed)
            case "iscsi":
                from zfsilod.host.disks import Disks
                from zfsilod.host.iscsi import RealIscsi
                from zfsilod.host.node_records import Nodes

                return RealIscsi(self._run, Disks(), Nodes())
            case "nvme":
                from zfsilod.host.nvme import RealNvme
                from zfsilod.host.nvme_disks import NvmeDisks

                return RealNvme(self._run, NvmeDisks())
            case "block":
                from zfsilod.host.all_disks import AllDisks
                from zfsilod.host.block import RealBlock

                return RealBlock(self._run, AllDisks())
            case "mounts":
                from zfsilod.host.all_disks import AllDisks
                from zfsilod.host.mount import RealMounts

                return RealMounts(self._run, AllDisks())
        raise AttributeError(name)


def real_host(
    chap: Callable[[str], Chap],
    key_store: KeyStore,
    *,
    inherit: tuple[int, ...] = (),
    open_stream: Callable[[str], int] | None = None,
) -> HostAdapters:
    """Return this machine. Its tools inherit these descriptors, such as the operation's lock.

    `open_stream` returns the descriptor of the stream that an operation receives.
    """
    return RealHost(chap, key_store, Runner(inherit), open_stream)
