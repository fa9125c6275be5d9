"""The adapters of the host: one protocol each, implemented by the real host and by the fake one.

A probe (`is_`, `has_`, `find_`) changes nothing. It answers, or raises Conflict when something
of that name exists and is not zfsilo's, or Unavailable when the answer cannot be known now. Every
other method accepts any half-made state of what it makes or removes, and does nothing when the
work is done already. Sizes are in bytes, times in seconds. Tools that fail raise CommandFailed.
"""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.host.client_protocols import (
        BlockAdapter,
        IscsiAdapter,
        MountAdapter,
        NvmeAdapter,
    )
    from zfsilod.host.replica_protocol import ReplicaAdapter
    from zfsilod.host.server_protocols import (
        KeyAdapter,
        KeyStore,
        LimitAdapter,
        LioAdapter,
        NvmetAdapter,
        SnapshotAdapter,
        ZfsAdapter,
    )
    from zfsilod.model.chap import Chap


class HostAdapters(Protocol):
    """All adapters of one machine."""

    @property
    def zfs(self) -> ZfsAdapter: ...
    @property
    def snapshots(self) -> SnapshotAdapter: ...
    @property
    def keys(self) -> KeyAdapter: ...
    @property
    def replicas(self) -> ReplicaAdapter: ...
    @property
    def lio(self) -> LioAdapter: ...
    @property
    def nvmet(self) -> NvmetAdapter: ...
    @property
    def limits(self) -> LimitAdapter: ...
    @property
    def iscsi(self) -> IscsiAdapter: ...
    @property
    def nvme(self) -> NvmeAdapter: ...
    @property
    def block(self) -> BlockAdapter: ...
    @property
    def mounts(self) -> MountAdapter: ...
    @property
    def chap(self) -> Callable[[str], Chap]:
        """Return CHAP secrets by name, from the store."""

    @property
    def key_store(self) -> KeyStore: ...

    def machine_id(self) -> str:
        """Return the id of the machine for zfsilo: 32 hex digits. Raises Unavailable without."""

    def calendar_problem(self, calendar: str) -> str:
        """Return why systemd accepts no OnCalendar= of this text, or it is never due; "": none."""

    def calendar_due(self, calendar: str, after: int) -> int:
        """Return when OnCalendar= is due for the second time after a time; 0: never."""

    def surveyed(self, datasets: tuple[str, ...]) -> HostAdapters:
        """Return this host with the zvols of these datasets read in advance, in one process."""
