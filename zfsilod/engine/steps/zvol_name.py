"""Steps on the name of a zvol that was renamed by hand."""

from __future__ import annotations

from zfsilod.engine.step import HostStep
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.records import Resources

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters


class ZvolRenamed(HostStep, tag="ZvolRenamed", part="POOL"):
    """The zvol has the name of its record again, no longer the one that somebody gave it."""

    dataset: str
    other: str  # the name that somebody gave it
    uid: str
    guid: str

    def probe(self, host: HostAdapters) -> bool:
        return host.zfs.is_renamed(self.other, self.dataset, uid=self.uid, guid=self.guid)

    def do(self, host: HostAdapters) -> None:
        host.zfs.rename(self.other, self.dataset, uid=self.uid, guid=self.guid)

    def undo(self, host: HostAdapters) -> None:
        host.zfs.rename(self.dataset, self.other, uid=self.uid, guid=self.guid)

    def fact(self) -> str:
        return f"zvol is named {self.dataset}"

    def describe_do(self) -> str:
        return f"rename zvol {self.other} to {self.dataset}"

    def describe_undo(self) -> str:
        return f"rename zvol {self.dataset} to {self.other}"

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset, self.other), volumes=(self.uid,))
