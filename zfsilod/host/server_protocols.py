"""The adapters of a server: zvols, snapshots, and the kernel's targets of iSCSI and of NVMe."""

from __future__ import annotations

from zfsilod.host.transport_protocols import TargetAdapter
from zfsilod.model.lean import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.model.disk_key import DiskKey
    from zfsilod.model.errors import ZfsiloError
    from zfsilod.model.host_facts import (
        BlockRange,
        IoLimits,
        ListedSnapshot,
        ListedZvol,
        SnapshotRef,
    )
    from zfsilod.model.record import Pairs


class ZfsAdapter(Protocol):
    """zvols: zfs(8), zfsprops(7), zpool-list(8).

    `uid` is the user property `zfsilo:uid`, `guid` the property of that name; "" is any guid.
    """

    def has_zvol(self, dataset: str, *, uid: str, guid: str) -> bool:
        """Tell whether the dataset exists; it must be a zvol with this uid and guid."""

    def create_zvol(
        self,
        dataset: str,
        *,
        size_bytes: int,
        thin: bool,
        volblocksize: int,
        properties: Pairs,
        marks: Pairs,
        key: DiskKey | None = None,
    ) -> None:
        """Create a zvol with its properties and user properties (`marks`) in one command.

        `key`: it becomes an encryption root with this key, which is loaded.

        Raises ResourceExhausted (NO_SPACE), InvalidArgument (BAD_PROPERTY, BAD_SIZE).
        """

    def destroy_zvol(self, dataset: str, *, uid: str, guid: str) -> None:
        """Destroy a zvol. Raises Busy when it is in use, FailedPrecondition (DEPENDENTS)."""

    def users(self, dataset: str) -> list[str]:
        """Return the users of the device of a zvol on this host; an export is one.

        A zvol without its key has no device, so no users. Raises Unavailable without the device, or
        when the users cannot be seen.
        """

    def find_guid(self, dataset: str, *, uid: str) -> str:
        """Return the guid of a zvol. Raises FailedPrecondition (NO_DATASET)."""

    def find_epoch(self, dataset: str, *, uid: str = "", guid: str = "") -> tuple[int, str]:
        """Return the local property `zfsilo:epoch`: the number, and the operation that gave it.

        0 when it or the dataset is missing. Raises Conflict when it is not a number, and with `uid`
        (NOT_OURS) for another dataset than the zvol of that volume.
        """

    def why_keep(self, dataset: str, marks: Pairs) -> str:
        """Return "" for a zvol that is as its creation with these marks left it, else a sentence.

        It may be destroyed only when it is not used, no epoch was given, its filesystem mark is the
        first one, `zfsilo:operation` is that of the creation, and nothing was written to it.
        """

    def is_half_made(self, dataset: str, operation: str, planned: Pairs) -> bool:
        """Tell whether a zvol without marks is the one that an operation was making at a power cut.

        `planned`: native properties that it must have. See half_made.py for the others.
        """

    def destroy_half_made(self, dataset: str, operation: str, planned: Pairs) -> None:
        """Destroy that zvol, if it is half made. Raises Busy when it is in use."""

    def is_renamed(self, source: str, target: str, *, uid: str, guid: str) -> bool:
        """Tell whether the zvol has the name `target`, and not `source`.

        Raises FailedPrecondition (NO_DATASET) when it has neither.
        """

    def rename(self, source: str, target: str, *, uid: str, guid: str) -> None:
        """Rename a zvol: zfs-rename(8). The parent of its new name is created if missing."""

    def dependents(self, dataset: str) -> tuple[str, ...]:
        """Return all snapshots of a zvol and all their clones, including those of other programs.

        Raises FailedPrecondition (NO_DATASET) when the zvol does not exist.
        """

    def has_size(self, dataset: str, size_bytes: int) -> bool:
        """Tell whether volsize is this or larger."""

    def set_size(self, dataset: str, size_bytes: int) -> None:
        """Grow a zvol. Raises FailedPrecondition (SHRINK) for a smaller size."""

    def has_property(self, dataset: str, name: str, value: str) -> bool:
        """Tell whether a property is set on the dataset to this value; "": it is not set there."""

    def find_mark(self, dataset: str, name: str) -> str:
        """Return a user property of the zvol itself, set there or received; "": it has none."""

    def set_property(self, dataset: str, name: str, value: str) -> None:
        """Set a property; "": inherit it again, zfs-inherit(8)."""

    def find_owner(self, root: str) -> str:
        """Return the local property `zfsilo:owner` of a dataset; "": it has none.

        Raises FailedPrecondition (NO_DATASET), Unavailable (NO_POOL).
        """

    def set_owner(self, root: str, owner: str) -> None:
        """Set the property `zfsilo:owner` of a dataset."""

    def capacity(self, root: str) -> tuple[int, int]:
        """Return the available bytes of a dataset, and these with the used ones; quotas count."""

    def list_zvols(self, root: str) -> list[ListedZvol]:
        """Return every zvol below a dataset, including those of other programs."""

    def own_properties(self, root: str) -> dict[str, dict[str, str]]:
        """Return the properties with the source `local` of each zvol below a dataset."""

    def usage(self, dataset: str) -> dict[str, int]:
        """Return volsize, used and referenced of a zvol in bytes."""

    def usages(self, root: str) -> dict[str, tuple[int, int, int]]:
        """Return volsize, used and referenced in bytes of every zvol below a dataset."""

    def is_receiving(self, dataset: str) -> bool:
        """Tell whether a `zfs receive -s` of the zvol was interrupted: zfs-receive(8)."""

    def pool_problem(self, root: str) -> ZfsiloError | None:
        """Return the problem of the pool of a dataset: not ONLINE, read-only, without its key."""


class KeyAdapter(Protocol):
    """Keys of encrypted zvols: zfs-load-key(8), zfs-change-key(8).

    A clone has the key of its origin. `is_loaded` and `load` raise Conflict (NOT_ENCRYPTED) for a
    zvol that is not encrypted.
    """

    def is_loaded(self, dataset: str) -> bool:
        """Tell whether the key of a zvol is loaded."""

    def load(self, dataset: str, key: DiskKey) -> None:
        """Load the key of a zvol. Raises FailedPrecondition (KEY_MISMATCH) for another key."""

    def opens(self, dataset: str, key: DiskKey) -> bool:
        """Tell whether this is the key of an encryption root, loaded or not.

        Raises Unavailable to a process that may not load keys, as the daemon is one.
        """

    def change(self, dataset: str, key: DiskKey) -> None:
        """Replace the key of an encryption root, which has to be loaded (KEY_NOT_LOADED)."""

    def find_root(self, dataset: str) -> str:
        """Return the encryption root of a zvol, a dataset; "": it is not encrypted."""

    def find_sealed(self, dataset: str) -> str:
        """Return the sealed keys that an encryption root carries, between spaces; "": none."""


class KeyStore(Protocol):
    """The keys of encrypted volumes in the store of zfsilo, by the uid of their volume.

    Each method raises FailedPrecondition (KEY_LOST) when it has none.
    """

    def disk_key(self, uid: str, rotation: int) -> DiskKey:
        """Return a key by its rotation; CURRENT: the one of its record."""

    def disk_keys(self, uid: str, sealed: str) -> list[DiskKey]:
        """Return the keys that may open a volume: the recorded one, then those of a zvol.

        `sealed`: what the zvol carries; a store that was restored may not have its keys.
        """

    def sealed_key(self, uid: str, rotation: int) -> str:
        """Return a key for a zvol to carry: sealed by the key of the store, as printable text."""


class SnapshotAdapter(Protocol):
    """Snapshot sets and clones of zvols: zfs-snapshot(8), zfs-clone(8), zfs-destroy(8).

    `uid` is that of the snapshot set; each snapshot of a set is called DATASET@zfsilo-UID.
    """

    def has_set(self, refs: tuple[SnapshotRef, ...], uid: str) -> bool:
        """Tell whether all snapshots of a set exist; a released snapshot counts as absent."""

    def take(self, refs: tuple[SnapshotRef, ...], uid: str, marks: Pairs) -> None:
        """Make the snapshots of a set at one moment; an incomplete set is made again."""

    def is_made_by(self, refs: tuple[SnapshotRef, ...], uid: str, operation: str) -> bool:
        """Tell whether the snapshots of a set that exist were taken by this operation."""

    def release(self, refs: tuple[SnapshotRef, ...], uid: str) -> None:
        """Destroy snapshots, each as soon as it has no clone: `zfs destroy -d`."""

    def users(self, refs: tuple[SnapshotRef, ...], uid: str) -> tuple[str, ...]:
        """Return the clones and holds of the snapshots of a set that exist: zfs-hold(8)."""

    def find_guids(self, refs: tuple[SnapshotRef, ...], uid: str) -> dict[str, str]:
        """Return the guids of the snapshots of a set, by the uid of their volume."""

    def list_snapshots(self, root: str) -> list[ListedSnapshot]:
        """Return every snapshot of zfsilo below a dataset that is not released."""

    def read_blocks(
        self, ref: SnapshotRef, uid: str, *, base: SnapshotRef | None, base_uid: str, start: int
    ) -> Iterator[BlockRange]:
        """Yield the blocks of a snapshot that are in use, or that differ from those of a base.

        `base`: an older snapshot of the same zvol, of the set `base_uid`. The ranges are in order,
        do not overlap, and begin at the offset `start`. None is missing; what has not changed may
        be among them. Raises InvalidArgument (BAD_BASE) when the base is not older, and
        FailedPrecondition (LOST) when a snapshot does not exist.
        """

    def has_clone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, snapshot_uid: str, own: bool
    ) -> bool:
        """Tell whether a clone exists, and with `own` its snapshot is released."""

    def clone(
        self,
        dataset: str,
        *,
        uid: str,
        snapshot_ref: SnapshotRef,
        snapshot_uid: str,
        own: bool,
        properties: Pairs,
        marks: Pairs,
    ) -> None:
        """Clone a snapshot of a set. With `own` the snapshot is taken before and released after.

        Raises FailedPrecondition (LOST) when the snapshot does not exist.
        """

    def destroy_clone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, snapshot_uid: str, own: bool
    ) -> None:
        """Destroy a clone, and with `own` release its snapshot."""

    def is_reserved(self, dataset: str) -> bool:
        """Tell whether refreservation is at least volsize."""

    def set_reserved(self, dataset: str, *, reserved: bool) -> None:
        """Set refreservation to `auto`, or to `none`: zfsprops(7)."""


class LioAdapter(TargetAdapter, Protocol):
    """The kernel's iSCSI target (LIO), in configfs: backstores, targets, LUNs, portals and ACLs.

    A target has one portal group (tpgt_1) with one LUN, number 0. Portals are "10.0.0.1:3260" or
    "[fd00::1]:3260".
    """

    def has_backstore(self, name: str, *, dataset: str, serial: str) -> bool:
        """Tell whether an enabled iblock backstore exists; it must have this zvol and serial."""

    def add_backstore(self, name: str, *, dataset: str, serial: str) -> None:
        """Make a backstore of a zvol, with the saved persistent reservations of the serial.

        Raises Busy when the zvol is in use, FailedPrecondition (RESERVATIONS_DAMAGED).
        """

    def remove_backstore(self, name: str) -> None:
        """Remove a backstore. Raises Busy while it is a LUN."""

    def has_reservations(self, serial: str, initiator: str = "") -> bool:
        """Tell whether persistent reservations of an initiator are saved; "": of any.

        As long as a backstore has the serial, those of any are not saved but in use.
        """

    def forget_reservations(self, serial: str, initiator: str = "") -> None:
        """Remove the saved persistent reservations of an initiator whose ACL is gone; "": all."""

    def has_lun(self, target: str, backstore: str) -> bool:
        """Tell whether LUN 0 of a target exists; it must be this backstore."""

    def add_lun(self, target: str, backstore: str) -> None: ...
    def remove_lun(self, target: str) -> None:
        """Remove LUN 0. Raises Busy (LUN_MAPPED) while an ACL maps it."""

    def is_enabled(self, target: str) -> bool: ...
    def enable(self, target: str) -> None: ...
    def disable(self, target: str) -> None: ...
    def has_mapped_lun(self, target: str, initiator: str, *, readonly: bool) -> bool:
        """Tell whether an ACL maps LUN 0 with this write protection."""

    def map_lun(self, target: str, initiator: str, *, readonly: bool) -> None:
        """Map LUN 0 for an initiator; it is never writable before its write protection is set."""

    def unmap_lun(self, target: str, initiator: str) -> None: ...
    def list_backstores(self) -> list[str]:
        """Return the names of all iblock backstores, including those of other programs."""


class LimitAdapter(Protocol):
    """The limits of the I/O of volumes that are exported over iSCSI.

    A limit is of all sessions of the volume together, and applies to the I/O of sessions only.
    """

    def has_limits(self, backstore: str, limits: IoLimits, *, dataset: str) -> bool:
        """Tell whether exactly these limits are set for the device of a backstore.

        `dataset`: its zvol, which tells the device when the backstore is gone.
        """

    def set_limits(self, backstore: str, limits: IoLimits, *, dataset: str = "") -> None:
        """Set the limits for the device of a backstore, and apply them to all present sessions.

        Raises FailedPrecondition (NO_IO_LIMITS) where the kernel cannot.
        """

    def has_all_sessions(self) -> bool:
        """Tell whether limits apply to every session; a new one begins without. True when there
        are no limits.
        """

    def take_sessions(self) -> None:
        """Apply the limits to all present sessions."""


class NvmetAdapter(TargetAdapter, Protocol):
    """The kernel's NVMe target (nvmet), in configfs: subsystems, namespaces, ports and hosts.

    A subsystem is a target, the NQN of a host an initiator, and its folder with keys together with
    the link that allows it an ACL. A portal is the link of a port to the subsystem; the port is
    made for the first link and removed after the last one. With a PSK the secrets of a host are
    also in the kernel's keyring.
    """

    def has_portals(self, target: str, portals: tuple[str, ...], *, tls: bool = False) -> bool:
        """Tell whether a subsystem has exactly these portals, and all require TLS or none does."""

    def add_portals(self, target: str, portals: tuple[str, ...], *, tls: bool = False) -> None:
        """Make the portals of a subsystem, with TLS or without, and remove all others.

        Raises Conflict for a portal of the other kind, FailedPrecondition (NO_NVME_TLS).
        """

    def has_controller_ids(self, target: str, first: int, last: int) -> bool:
        """Tell whether a subsystem gives ids from `first` to `last` to new controllers."""

    def set_controller_ids(self, target: str, first: int, last: int) -> None:
        """Set the range, also while clients are connected: a live controller keeps its id."""

    def has_namespace(self, target: str, *, dataset: str, uid: str) -> bool:
        """Tell whether namespace 1 is enabled; it must have this zvol and identity.

        Raises Conflict for another namespace, or another one in its place.
        """

    def add_namespace(self, target: str, *, dataset: str, uid: str) -> None:
        """Make namespace 1 of a zvol. Raises Busy when the zvol is in use."""

    def remove_namespace(self, target: str) -> None: ...
    def add_portals_to_all(
        self, targets: tuple[str, ...], portals: tuple[str, ...], *, tls: bool = False
    ) -> None:
        """Link the ports of these portals to all these subsystems, one right after the other."""

    def is_empty(self, target: str) -> bool:
        """Tell whether nothing of a namespace of a subsystem exists."""
