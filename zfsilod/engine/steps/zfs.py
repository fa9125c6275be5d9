"""Steps on zvols: existence, size, properties, place in the pool, reservation."""

from __future__ import annotations

from zfsilod.engine.step import KEPT, Guard, HostStep, OneWay
from zfsilod.model.errors import Conflict, FailedPrecondition
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.marks import EPOCH, OPERATION, REVERTED, SEALED_KEY, epoch_fact, epoch_mark
from zfsilod.model.records import Resources, disk_key_name
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
    encrypted: bool = False  # with a key of its own

    def probe(self, host: HostAdapters) -> bool:
        return host.zfs.has_zvol(self.dataset, uid=self.uid, guid=self.guid)

    def do(self, host: HostAdapters) -> None:
        key, marks = None, self.marks
        if self.encrypted:  # it carries its key from the start: a rollback may keep it
            key = host.key_store.disk_key(self.uid, 0)
            marks = (*marks, (SEALED_KEY, host.key_store.sealed_key(self.uid, 0)))
        host.zfs.create_zvol(
            self.dataset,
            size_bytes=self.size_bytes,
            thin=self.thin,
            volblocksize=self.volblocksize,
            properties=self.properties,
            marks=marks,
            key=key,
        )

    def undo(self, host: HostAdapters) -> None:
        host.zfs.destroy_zvol(self.dataset, uid=self.uid, guid=self.guid)

    def revert(self, host: HostAdapters) -> dict[str, str]:
        planned = (("volsize", str(self.size_bytes)), ("volblocksize", str(self.volblocksize)))
        operation = dict(self.marks).get(OPERATION, "")
        discard_half_made(host, self.dataset, self.uid, operation, planned)
        kept = self.probe(host) and host.zfs.why_keep(self.dataset, self.marks)
        if kept:
            return {KEPT: kept}
        self.undo(host)
        return {}

    def observed(self, host: HostAdapters, *, made: bool) -> dict[str, str]:
        return {"guid": host.zfs.find_guid(self.dataset, uid=self.uid)}

    def fact(self) -> str:
        return f"zvol {self.dataset} exists"

    def describe_do(self) -> str:
        values = (
            show_round(self.size_bytes),
            "thin" if self.thin else "thick",
            f"blocks of {show_round(self.volblocksize)}",
            *(("encrypted",) if self.encrypted else ()),
            *(f"{name}={value}" for name, value in self.properties),
        )
        return f"create zvol {self.dataset} ({', '.join(values)})"

    def describe_undo(self) -> str:
        what = "its data and its key" if self.encrypted else "its data"
        return f"destroy zvol {self.dataset} ({show_round(self.size_bytes)}) and {what}"

    def resources(self) -> Resources:
        secrets = (disk_key_name(self.uid, 0),) if self.encrypted else ()
        return Resources(datasets=(self.dataset,), volumes=(self.uid,), secrets=secrets)


def discard_half_made(
    host: HostAdapters, dataset: str, uid: str, operation: str, planned: Pairs
) -> None:
    """Destroy the zvol that a power cut left without its marks; any other stays as it is."""
    try:
        host.zfs.has_zvol(dataset, uid=uid, guid="")
    except Conflict as error:
        if error.reason != "NOT_OURS" or not operation:
            raise
        host.zfs.destroy_half_made(dataset, operation, planned)


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

    def revert(self, host: HostAdapters) -> dict[str, str]:
        # Another value is not from this operation: a later one has set it.
        if self.probe(host):
            self.undo(host)
        return {}

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


class Epoch(OneWay, tag="Epoch", part="POOL"):
    """The zvol carries this epoch, before the access that it counts is changed.

    Sticky: an epoch is never given twice, so a rollback leaves it, and marks it as reverted. A
    store that was restored from a backup has a lower one than the zvol, and changes nothing. One
    from the middle of this operation has the same; the mark tells how the operation went on.
    """

    sticky = True
    dataset: str
    volume: str
    epoch: int
    operation: str  # that gives the epoch; the zvol carries it too
    uid: str = ""  # of the zvol, as its guid; "": not known
    guid: str = ""
    revokes: bool = False  # access only ends: also where another dataset replaced the zvol
    trash: str = ""  # where this operation moves the zvol afterwards; "": it stays

    def probe(self, host: HostAdapters) -> bool:
        try:
            present = self._present(host, uid=self.uid)
        except Conflict as error:
            if error.reason != "NOT_OURS":
                raise
            if self.revokes:
                return True  # a dataset that is not the volume's gets no mark
            self.check_current(host)  # that the store is old is told first
            raise
        self._compare(*present)
        return present == (self.epoch, self.operation)

    def do(self, host: HostAdapters) -> None:
        self._mark(host, self.operation)

    def revert(self, host: HostAdapters) -> dict[str, str]:
        present = self._present(host)
        self._compare(*present)
        if present[0] != self.epoch:
            return {}
        self._mark(host, f"{self.operation}{REVERTED}")
        return {epoch_fact(self.dataset): str(self.epoch)}

    def check_current(self, host: HostAdapters) -> None:
        self._compare(*self._present(host))

    def _present(self, host: HostAdapters, uid: str = "") -> tuple[int, str]:
        """Return the epoch of the zvol and its operation, at the place where the zvol is."""
        present = host.zfs.find_epoch(self.dataset, uid=uid, guid=self.guid)
        if self.trash and not present[0]:
            return host.zfs.find_epoch(self.trash, uid=uid, guid=self.guid)
        return present

    def _compare(self, epoch: int, operation: str) -> None:
        """Raise Conflict when the zvol has a later change of access than this operation."""
        own = operation.removesuffix(REVERTED) == self.operation
        if epoch > self.epoch or (epoch == self.epoch and not own):
            raise newer(self.dataset, self.volume)

    def must_finish(self, host: HostAdapters) -> bool:
        return self.probe(host)

    def _mark(self, host: HostAdapters, operation: str) -> None:
        try:
            host.zfs.set_property(self.dataset, EPOCH, epoch_mark(self.epoch, operation))
        except FailedPrecondition as error:
            if error.reason != "NO_DATASET":  # of a zvol that is gone, access can still be ended
                raise

    def fact(self) -> str:
        return f"zvol has epoch {self.epoch}"

    def describe_do(self) -> str:
        return f"set epoch {self.epoch} of zvol {self.dataset}"

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset,))


class NotNewer(Guard, tag="NotNewer", part="POOL"):
    """The zvol has no later epoch than the record: the store is not older than the pool.

    A dataset that is not the zvol of the volume is a Conflict: nothing on it is changed.
    """

    dataset: str
    volume: str
    epoch: int  # of the record
    uid: str = ""  # of the zvol, as its guid; "": not known
    guid: str = ""

    def probe(self, host: HostAdapters) -> bool:
        self._check(host, self.uid)
        return True

    def refusal(self, _host: HostAdapters) -> Conflict:
        return newer(self.dataset, self.volume)

    def check_current(self, host: HostAdapters) -> None:
        self._check(host)

    def _check(self, host: HostAdapters, uid: str = "") -> None:
        epoch, _operation = host.zfs.find_epoch(self.dataset, uid=uid, guid=self.guid)
        if epoch > self.epoch:
            raise newer(self.dataset, self.volume)

    def fact(self) -> str:
        return f"zvol has no epoch after {self.epoch}"

    def describe_do(self) -> str:
        return f"check that zvol {self.dataset} has no epoch after {self.epoch}"

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset,))


def newer(dataset: str, volume: str) -> Conflict:
    """Return the error for a zvol whose epoch is later than that of its record."""
    return Conflict(
        f"zvol {dataset} knows a later change of access than the record of volume {volume}: the "
        f"store was restored from a backup; run `zfsiloctl adopt {dataset}` to go on without the "
        "publications of the backup",
        reason="ZVOL_NEWER",
        dataset=dataset,
        volume=volume,
    )


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
