"""Stored records. No I/O.

    server    Volume --< Publication >-- Host
    client    Attachment --< Mount
    both      Operation --< Action >-- Step (engine/steps/)

The `revision` of a record is the counter of the store at its last change; the API shows it as the
etag. Times are seconds since 1970, sizes are bytes.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod

from zfsilod.model.host_facts import NO_LIMITS, Disk, Filesystem, IoLimits
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.record import Pairs, Record, Stored, pairs

if TYPE_CHECKING:
    from typing import ClassVar, Literal

    from zfsilod.model.errors import ZfsiloError
    from zfsilod.model.words import (
        AccessMode,
        ActionStatus,
        AttachmentState,
        Mode,
        OperationState,
        Restore,
        Transport,
        VolumeState,
    )

ENDED = ("DONE", "ROLLED_BACK", "ABANDONED")


class ReplicaOf(Record, tag="ReplicaOf"):
    """The origin of a replica, and the snapshot that it has; a volume that is none has no peer."""

    peer: str = ""  # Caller.peer of who sends it; "": the volume is not a replica
    snapshot_uid: str = ""  # of the newest whole snapshot; "": none is whole yet
    snapshot_guid: str = ""
    taken_at: int = 0  # by the clock of the peer
    received_at: int = 0
    raw: bool = False  # it is encrypted, and its key is not here


class Volume(Stored, tag="Volume"):
    """A zvol of this server."""

    id: str
    uid: str  # 32 hex digits, never reused; all kernel names come from it
    dataset: str
    capacity_bytes: int
    thin: bool
    mode: Mode
    volblocksize: int
    properties: Pairs = ()
    labels: Pairs = ()
    hosts: tuple[str, ...] = ()  # hosts that may publish it to themselves; ("*",): all
    access_modes: tuple[AccessMode, ...] = ("SINGLE_NODE_WRITER",)
    state: VolumeState = "ABSENT"
    guid: str = ""  # of the dataset in ZFS, observed when it was created
    filesystem: Filesystem = Filesystem()
    epoch: int = 0  # of the newest publication; counted up, never reused
    target: str = ""  # names of its export since it was made, until it is removed; "": derived
    backstore: str = ""
    transport: Transport = "ISCSI"  # of a publication that names none
    limits: IoLimits = NO_LIMITS  # of all its clients together
    tls: bool = False  # every publication has TLS; over NVMe only
    source_snapshot: str = ""  # ids of its source at its creation
    source_volume: str = ""
    origin: str = ""  # uid of the volume whose snapshot it is a clone of
    key_uid: str = ""  # of the volume whose key it has: its own, of a clone the first origin's
    replica: ReplicaOf = ReplicaOf()  # of a volume that another server sends
    created_at: int = 0
    updated_at: int = 0

    @property
    def is_replica(self) -> bool:
        """Whether another server sends it: it is never published, and nothing here writes it."""
        return bool(self.replica.peer)


class VolumeKey(Stored, tag="VolumeKey"):
    """That zfsilo keeps the key of an encryption root; the sealed key is a secret of the store."""

    id: str  # uid of the volume that is the encryption root
    rotation: int = 0  # number of the key
    exported_at: int = 0  # when it was shown as recovery key; 0: never
    created_at: int = 0  # of this key

    @property
    def secret(self) -> str:
        """The name of the sealed key in the store."""
        return disk_key_name(self.id, self.rotation)


class Trashed(Stored, tag="Trashed"):
    """A deleted volume whose zvol is kept until `purge_at`. Its name is free."""

    id: str  # <volume>/<uid>: the trash may have several volumes of one name
    volume: Volume  # at its deletion, with the dataset that it has in the trash
    home: str  # its dataset before the deletion
    deleted_at: int = 0
    purge_at: int = 0  # earliest time; not while snapshots or clones depend on it
    clock_trusted: bool = False  # when these times were set; else they are set when it is
    began_at: int = 0  # the time at which it was trusted first, where it was not at the deletion


class Snapshot(Stored, tag="Snapshot"):
    """The content of a volume at one moment."""

    id: str
    uid: str  # of the snapshot set: shared by a group, and part of the names in ZFS
    volume: str  # its id at that moment
    volume_uid: str
    size_bytes: int
    volblocksize: int
    mode: Mode
    filesystem: Filesystem
    labels: Pairs = ()
    group: str = ""
    guid: str = ""  # of the snapshot in ZFS, observed when it was taken
    policy: str = ""  # that took it, and may delete it; "": a caller did
    policy_uid: str = ""
    grid_version: int = 0  # of the policy then
    peer: str = ""  # that it was taken for, by a replication
    created_at: int = 0


class SnapshotGroup(Stored, tag="SnapshotGroup"):
    """Snapshots of several volumes, taken at one moment."""

    id: str
    uid: str
    volumes: tuple[str, ...]
    snapshots: tuple[str, ...]
    labels: Pairs = ()
    policy: str = ""  # that took it, and may delete it; "": a caller did
    policy_uid: str = ""
    created_at: int = 0


class Dependent(Stored, tag="Dependent"):
    """A snapshot of a volume, or a clone of one: it needs the zvol of the volume."""

    id: str  # <uid of the volume>/snapshots/<id> or .../volumes/<uid of the clone>
    name: str  # resource name: snapshots/<id>, volumes/<id>


class Publication(Stored, tag="Publication"):
    """The right of one host to use one volume."""

    id: str  # <volume>/<host>
    volume: str
    host: str
    initiator: str  # IQN of the host at the time; over NVMe a name of this publication alone
    transport: Transport = "ISCSI"
    tls: bool = False  # of NVMe/TCP; all publications of a volume have it, or none has
    access_mode: AccessMode = "SINGLE_NODE_WRITER"
    readonly: bool = False
    epoch: int = 0
    published_by: str = ""  # caller: the host itself, a controller or an administrator
    publisher: str = ""  # role of that caller, for a CSI plugin "controller"; schema 2: ""
    client_operation: str = ""  # operation of the client that published, for its release
    rotation: int = 0  # number of its secrets, which may change during a session
    rotation_due: bool = False  # new secrets are requested; the host fetches them
    shown: int = -1  # the rotation whose secrets were shown to a person; -1: none
    created_at: int = 0

    @property
    def secret(self) -> str:
        """The name of its secrets in the store."""
        return secret_name(self.id, self.rotation)

    @property
    def by_controller(self) -> bool:
        """Whether a controller published it, or confirmed it since."""
        return (self.publisher or self.published_by.partition(" ")[0]) == "controller"


class Host(Stored, tag="Host"):
    """A machine to which volumes are published."""

    id: str
    iqn: str = ""
    nqn: str = ""
    addresses: tuple[str, ...] = ()
    labels: Pairs = ()
    max_attachments: int = 0  # 0: no limit
    authority: Literal["", "OWN", "IMPORTED"] = ""  # of its certificate, since the first contact
    machine: str = ""  # hash of its machine id, since the first contact
    created_at: int = 0
    updated_at: int = 0


class Mount(Record, tag="Mount"):
    """One path at which a staged volume appears."""

    path: str
    readonly: bool = False
    made_path: bool = False  # zfsilo created the mount point, and removes it
    root: str = ""  # folder that the path may not leave, "/" for an administrator; "": 0.1.0


class Attachment(Stored, tag="Attachment"):
    """A volume of a server, used on this client."""

    id: str  # the local name
    server: str
    volume: str
    disk: Disk
    portals: tuple[str, ...]
    mode: Mode
    epoch: int
    tls: bool = False
    rotation: int = 0  # of the publication's secrets that this host has
    readonly: bool = False
    restore: Restore = "NEVER"
    connected_by: str = ""  # role of the caller; "" in records of schema 2
    published_here: str = ""  # operation that published it; disconnect then releases it
    state: AttachmentState = "ABSENT"
    filesystem: Filesystem = Filesystem()
    staging_path: str = ""
    made_staging_path: bool = False
    staging_root: str = ""  # as the root of a mount
    mount_options: tuple[str, ...] = ()
    stage_readonly: bool = False
    mounts: tuple[Mount, ...] = ()
    boot_id: str = ""  # boot in which it was last connected
    created_at: int = 0
    updated_at: int = 0

    @property
    def secret(self) -> str:
        """The name of its secrets in the store."""
        return secret_name(self.id, self.rotation)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path at which it is mounted."""
        return tuple(path for path, _root in self.rooted_paths)

    @property
    def rooted_paths(self) -> tuple[tuple[str, str], ...]:
        """Every path at which it is mounted, with its root."""
        staging = ((self.staging_path, self.staging_root),) if self.staging_path else ()
        return (*staging, *((mount.path, mount.root) for mount in self.mounts))


def journal_fields(subject: str) -> dict[str, str]:
    """Return the journal fields of a resource name; a volume has one of its own: its id."""
    collection, _slash, name = subject.partition("/")
    volume = {"ZFSILO_VOLUME": name} if collection == "volumes" else {}
    return {"ZFSILO_SUBJECT": subject} | volume


def secret_name(owner: str, rotation: int) -> str:
    """Return the name of the secrets of a publication or an attachment, one per rotation.

    Old and new secrets are both stored until the operation that changes them has ended.
    """
    return f"{owner}#{rotation}" if rotation else owner


def disk_key_name(uid: str, rotation: int) -> str:
    """Return the name of the sealed key of a volume, one per rotation."""
    return secret_name(f"keys/{uid}", rotation)


class PendingRelease(Stored, tag="Debt"):
    """A release that a server has not confirmed yet; it is retried."""

    id: str  # of the operation that released
    server: str
    volume: str


class Condition(Stored, tag="Condition"):
    """Differences of a volume that cannot be repaired; removed when it is healthy."""

    id: str  # the volume's uid
    sentences: tuple[str, ...]
    reasons: tuple[str, ...] = ()  # of the sentences; a record of schema 2 has none


class Token(Stored, tag="Token"):
    """A bearer token; only its digest is stored."""

    id: str
    digest: str  # SHA-256 of the token, hex
    role: str  # identity.Role: admin, controller or reader
    subject: str  # user or script
    created_at: int = 0
    expires_at: int = 0  # 0: never


class Issued(Stored, tag="Issued"):
    """A certificate that this host's authority signed, or one of another that is revoked here."""

    id: str  # its SHA-256, hex
    subject: str  # host/ID or user/ID; "": not known
    role: str
    created_at: int = 0
    expires_at: int = 0
    revoked_at: int = 0


class Revocation(Stored, tag="Revocation"):
    """An identity is revoked: everything that was issued to it before (security/credentials.py)."""

    id: str  # host/ID or user/ID; of an imported authority imported/host/ID
    revoked_at: int = 0


class Resources(Record):
    """The things that a step reads or changes, by kind."""

    datasets: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()  # uids
    targets: tuple[str, ...] = ()  # IQNs, NQNs
    initiators: tuple[tuple[str, str], ...] = ()  # names of a target and of an initiator of it
    paths: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()  # names in the store


class Step(Record, metaclass=ABCMeta):
    """One fact that an operation makes true or false (engine/steps/)."""

    ABSTRACT: ClassVar[tuple[str, ...]] = ("fact", "describe_do", "describe_undo", "resources")
    volatile: ClassVar[bool] = False  # gone after a reboot: configfs, session, mount
    sticky: ClassVar[bool] = False  # undo leaves it: a filesystem
    final: ClassVar[tuple[bool, ...]] = ()  # directions (True: up) that cannot be reverted
    atomic: ClassVar[bool] = True  # a final one that failed has done nothing if its probe says so

    def __init_subclass__(cls, *, tag: str = "", aliases: tuple[str, ...] = ()) -> None:
        """Register the class. Raises TypeError when it has a tag, but a method is missing."""
        missing = [n for n in cls.ABSTRACT if hasattr(getattr(cls, n), "__isabstractmethod__")]
        if tag and missing:
            raise TypeError(f"step {cls.__name__} has no {', '.join(missing)}: add these methods")
        super().__init_subclass__(tag=tag, aliases=aliases)

    @abstractmethod
    def fact(self) -> str:
        """Return the fact as a statement about its volume: "target is enabled"."""

    @abstractmethod
    def describe_do(self) -> str:
        """Return what `do` does, in the imperative and without secrets: "enable target iqn..."."""

    @abstractmethod
    def describe_undo(self) -> str:
        """Return what `undo` does, in the imperative and without secrets."""

    @abstractmethod
    def resources(self) -> Resources:
        """Return the things that the step reads or changes."""


class RemoteStep(Step):
    """A fact about a server: the daemon asks for it, between two runs of the worker."""

    lasts: ClassVar[bool] = False  # it may take hours: the worker does not wait for it
    server: str
    volume: str


class Action(Record, tag="Action", aliases=("Move",)):
    """A step and its direction, with its status."""

    step: Step
    up: bool
    status: ActionStatus = "PENDING"
    took_ms: int = 0  # duration; 0: unchanged, or less than 1 ms

    @property
    def final(self) -> bool:
        """Whether a rollback is impossible once this action has started."""
        return self.up in self.step.final

    @property
    def began(self) -> bool:
        """Whether this operation has changed something by it, or may have."""
        return self.status in ("STARTED", "DONE")

    @property
    def way(self) -> str:
        """Its direction as a word."""
        return "do" if self.up else "undo"

    @property
    def description(self) -> str:
        """The change in words: "create target iqn...", "unmount /srv/data"."""
        return self.step.describe_do() if self.up else self.step.describe_undo()


class Change(Record, tag="Change"):
    """A record to put into a bucket of the store, or (None) a key to delete."""

    bucket: str
    key: str
    record: Stored | None = None


class Failure(Record, tag="Failure"):
    """An error in its stored form: see errors.revive."""

    name: str
    message: str
    reason: str = ""
    facts: Pairs = ()
    step: str = ""


def failure_of(error: ZfsiloError, step: str) -> Failure:
    """Return an error in its stored form."""
    return Failure(
        name=error.name,
        message=error.message,
        reason=error.reason,
        facts=pairs(error.facts),
        step=step,
    )


class Operation(Stored, tag="Operation"):
    """The actions of one request, stored before the first of them starts."""

    id: str  # ULID
    kind: str  # the request: create, publish, ...
    subject: str  # resource name: volumes/data
    title: str  # for people: "publish data to take over iscsi"
    actions: tuple[Action, ...]
    claims: tuple[str, ...]
    commit: tuple[Change, ...]  # written in the transaction that ends it
    revert: tuple[Change, ...] = ()  # written in the transaction that ends its rollback
    facts: Pairs = ()  # observed by steps; the commit fills them into the record
    fingerprint: str = ""  # of the request: an equal request joins the operation
    caller: str = ""
    rights: str = ""  # Caller.rights
    state: OperationState = "RUNNING"
    failure: Failure | None = None
    attempts: int = 0  # of a rollback that failed
    boot_id: str = ""
    batch: str = ""  # unit that runs several operations; "": one of its own
    reserves: int = 0  # bytes by which it grows volumes that are fully reserved
    promises: int = 0  # bytes by which it grows thin volumes
    created_at: int = 0
    ended_at: int = 0

    @property
    def unit(self) -> str:
        """The part of its unit's name that identifies it."""
        return self.batch or self.id

    @property
    def ended(self) -> bool:
        """Whether its outcome is final."""
        return self.state in ENDED

    @property
    def next_action(self) -> Action | None:
        """The first action that is not done."""
        unfinished = (a for a in self.actions if a.status in ("PENDING", "STARTED"))
        return next(unfinished, None)

    @property
    def at_server(self) -> bool:
        """Whether its next step is a remote one, which the daemon does."""
        action = self.next_action
        remote = action is not None and isinstance(action.step, RemoteStep)
        return remote and self.state in ("RUNNING", "WAITING")

    @property
    def progress(self) -> int:
        """Percentage of actions that are done; 100 only when the operation is DONE."""
        if self.state == "DONE":
            return 100
        made = sum(action.status in ("UNCHANGED", "DONE") for action in self.actions)
        return min(99, 100 * made // max(1, len(self.actions)))

    @property
    def behind(self) -> tuple[str, ...]:
        """Descriptions of the actions whose effects remain."""
        return tuple(action.description for action in self.actions if action.began)

    def with_status(self, index: int, status: ActionStatus, *, took_ms: int = 0) -> Operation:
        """Return the operation with another status of one action."""
        action = self.actions[index].but(
            status=status, took_ms=took_ms or self.actions[index].took_ms
        )
        return self.but(actions=(*self.actions[:index], action, *self.actions[index + 1 :]))
