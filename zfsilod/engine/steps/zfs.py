"""Steps on zvols: existence, size, properties, place in the pool, reservation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine.step import HostStep, OneWay
from zfsilod.model.records import Resources
from zfsilod.model.sizes import show_round

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters
    from zfsilod.model.record import Pairs


class Zvol(HostStep, tag="Zvol", part="POOL"):
    """The zvol exists and is the volume's: its marks are local, its guid is the recorded one."""

    final = (False,)
    dataset: str
    uid: str
    guid: str  # "" until it is known
    size_bytes: int
    thin: bool
    volblocksize: int
    properties: Pairs
    marks: Pairs  # ZFS user properties, set by the creation: the proof of ownership

    def probe(self, host: HostAdapters) -> bool:
        return host.zfs.has_zvol(self.dataset, uid=self.uid, guid=self.guid)

    def do(self, host: HostAdapters) -> None:
        host.zfs.create_zvol(
            self.dataset,
            size_bytes=self.size_bytes,
            thin=self.thin,
            volblocksize=self.volblocksize,
            properties=self.properties,
            marks=self.marks,
        )

    def undo(self, host: HostAdapters) -> None:
        host.zfs.destroy_zvol(self.dataset, uid=self.uid, guid=self.guid)

    def creates(self) -> bool:
        return True

    def kept_by_rollback(self, host: HostAdapters) -> str:
        return kept_zvol(host, self.dataset, self.uid, self.marks)

    def observed(self, host: HostAdapters, *, made: bool) -> dict[str, str]:
        return {"guid": host.zfs.find_guid(self.dataset, uid=self.uid)}

    def fact(self) -> str:
        return f"zvol {self.dataset} exists"

    def describe_do(self) -> str:
        provisioning = "thin" if self.thin else "thick"
        return f"create zvol {self.dataset} ({show_round(self.size_bytes)}, {provisioning})"

    def describe_undo(self) -> str:
        return f"destroy zvol {self.dataset}"

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset,), volumes=(self.uid,))


def kept_zvol(host: HostAdapters, dataset: str, uid: str, marks: Pairs) -> str:
    """Return why a zvol with these first marks must outlive the rollback of its creation."""
    sign = host.zfs.find_sign_of_use(dataset, uid=uid, marks=marks)
    return f"zvol {dataset} is kept: {sign}; adopt it, or remove it as an orphan" if sign else ""


class ZvolSize(OneWay, tag="ZvolSize", part="POOL"):
    """The zvol has this size. It never shrinks: there may be data beyond the old size."""

    final = (True,)
    dataset: str
    size_bytes: int

    def probe(self, host: HostAdapters) -> bool:
        return host.zfs.has_size(self.dataset, self.size_bytes)

    def do(self, host: HostAdapters) -> None:
        host.zfs.set_size(self.dataset, self.size_bytes)

    def fact(self) -> str:
        return f"zvol has {show_round(self.size_bytes)}"

    def describe_do(self) -> str:
        return f"grow zvol {self.dataset} to {show_round(self.size_bytes)}"

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset,))


class ZvolProperty(HostStep, tag="ZvolProperty", part="POOL"):
    """A property of the zvol has this value; before, it had `previous` ("": inherited)."""

    dataset: str
    name: str
    value: str
    previous: str

    def probe(self, host: HostAdapters) -> bool:
        return host.zfs.has_property(self.dataset, self.name, self.value)

    def do(self, host: HostAdapters) -> None:
        host.zfs.set_property(self.dataset, self.name, self.value)

    def undo(self, host: HostAdapters) -> None:
        host.zfs.set_property(self.dataset, self.name, self.previous)

    def fact(self) -> str:
        return f"property {self.name} is {self.value or 'inherited'}"

    def describe_do(self) -> str:
        return self._describe(self.value)

    def describe_undo(self) -> str:
        return self._describe(self.previous)

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset,))

    def _describe(self, value: str) -> str:
        if value:
            return f"set property {self.name}={value} of zvol {self.dataset}"
        return f"let zvol {self.dataset} inherit property {self.name}"


class InTrash(HostStep, tag="InTrash", part="POOL"):
    """The zvol is in the trash, named after its uid, and its old name is free."""

    dataset: str  # its old name
    trash: str
    uid: str
    guid: str

    def probe(self, host: HostAdapters) -> bool:
        return host.zfs.is_renamed(self.dataset, self.trash, uid=self.uid, guid=self.guid)

    def do(self, host: HostAdapters) -> None:
        host.zfs.rename(self.dataset, self.trash, uid=self.uid, guid=self.guid)

    def undo(self, host: HostAdapters) -> None:
        host.zfs.rename(self.trash, self.dataset, uid=self.uid, guid=self.guid)

    def fact(self) -> str:
        return f"zvol {self.dataset} is in the trash"

    def describe_do(self) -> str:
        return f"move zvol {self.dataset} to the trash ({self.trash})"

    def describe_undo(self) -> str:
        return f"move zvol {self.dataset} out of the trash ({self.trash})"

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset, self.trash), volumes=(self.uid,))


class Reserved(HostStep, tag="Thick", part="POOL"):
    """The pool reserves space for the whole size of the zvol."""

    dataset: str

    def probe(self, host: HostAdapters) -> bool:
        return host.snapshots.is_reserved(self.dataset)

    def do(self, host: HostAdapters) -> None:
        host.snapshots.set_reserved(self.dataset, reserved=True)

    def undo(self, host: HostAdapters) -> None:
        host.snapshots.set_reserved(self.dataset, reserved=False)

    def fact(self) -> str:
        return "the whole size is reserved"

    def describe_do(self) -> str:
        return f"reserve the whole size of zvol {self.dataset}"

    def describe_undo(self) -> str:
        return f"remove the reservation of zvol {self.dataset}"

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset,))
