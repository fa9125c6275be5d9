"""The adapters of the host: one protocol each, implemented by the real host and by the fake one.

A probe (`is_`, `has_`, `find_`) changes nothing. It answers, or raises Conflict when something
of that name exists and is not zfsilo's, or Unavailable when the answer cannot be known now. Every
other method accepts any half-made state of what it makes or removes, and does nothing when the
work is done already. Sizes are in bytes, times in seconds. Tools that fail raise CommandFailed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.host.client_protocols import Block, Iscsi, Mounts
    from zfsilod.host.server_protocols import Lio, Snapshots, Zfs
    from zfsilod.model.chap import Chap


class Host(Protocol):
    """All adapters of one machine."""

    @property
    def zfs(self) -> Zfs: ...
    @property
    def snapshots(self) -> Snapshots: ...
    @property
    def lio(self) -> Lio: ...
    @property
    def iscsi(self) -> Iscsi: ...
    @property
    def block(self) -> Block: ...
    @property
    def mounts(self) -> Mounts: ...
    @property
    def chap(self) -> Callable[[str], Chap]:
        """Return CHAP secrets by name, from the store."""

    def surveyed(self, datasets: tuple[str, ...]) -> Host:
        """Return this host with the zvols of these datasets read in advance, in one process."""
