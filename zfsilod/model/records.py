"""The records: what zfsilo knows. No I/O.

    storage host   Volume --< Publication >-- Host
    consumer       Attachment --< Mount
    both           Operation --< Action >-- Step (engine/steps/)

A record's `revision` is the store's counter at its last change; the API shows it as the etag.
Times are seconds since 1970, sizes bytes.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from zfsilod.model.host_facts import Disk, Filesystem
from zfsilod.model.record import Pairs, Record, Stored, pairs

if TYPE_CHECKING:
    from zfsilod.model.errors import ZfsiloError

Mode = Literal["FILESYSTEM", "BLOCK"]
AccessMode = Literal[
    "SINGLE_NODE_WRITER",
    "SINGLE_NODE_READER_ONLY",
    "SINGLE_NODE_SINGLE_WRITER",
    "SINGLE_NODE_MULTI_WRITER",
    "MULTI_NODE_READER_ONLY",
    "MULTI_NODE_SINGLE_WRITER",
    "MULTI_NODE_MULTI_WRITER",
]
Transport = Literal["ISCSI"]
VolumeState = Literal["ABSENT", "CREATED", "PUBLISHED"]
AttachmentState = Literal["ABSENT", "CONNECTED", "STAGED", "MOUNTED"]
STATES = (*get_args(VolumeState), *get_args(AttachmentState)[1:])  # that a volume has on a host
Restore = Literal["BOOT", "NEVER"]
ActionStatus = Literal["PENDING", "UNCHANGED", "STARTED", "DONE", "REVERTED"]
OperationState = Literal[
    "RUNNING",  # its unit runs, or will as soon as systemd gets to it
    "WAITING",  # at a remote move, which the daemon makes between two runs of the worker
    "FAILED",  # a step failed; its rollback runs or will
    "DONE",
    "ROLLED_BACK",
    "ABANDONED",  # somebody let go of it when it needed repair: what it made may stay behind
    "NEEDS_REPAIR",  # the rollback failed too, or a final move cannot be finished
]
ENDED = ("DONE", "ROLLED_BACK", "ABANDONED")


class Volume(Stored, tag="Volume"):
    """A zvol of this storage host."""

    id: str
    uid: str  # 32 hex digits, never reused; all kernel names come from it
    dataset: str
    capacity_bytes: int
    thin: bool
    mode: Mode
    volblocksize: int
    properties: Pairs = ()
    labels: Pairs = ()
    hosts: tuple[str, ...] = ()  # may publish it to themselves; ("*",): every registered host
    access_modes: tuple[AccessMode, ...] = ("SINGLE_NODE_WRITER",)
    state: VolumeState = "ABSENT"
    guid: str = ""  # ZFS's own identity of the dataset, learned when it was made
    filesystem: Filesystem = Filesystem()
    epoch: int = 0  # of the newest publication; counted up, never reused
    source_snapshot: str = ""  # what it was made from, by id, as it was called then
    source_volume: str = ""
    origin: str = ""  # the uid of the volume whose snapshot it is a clone of
    created_at: int = 0
    updated_at: int = 0


class Trashed(Stored, tag="Trashed"):
    """A deleted volume whose zvol is still there: nobody finds it by its name any more."""

    id: str  # <volume>/<uid>: several of one name may be in the trash
    volume: Volume  # as it was, but for its dataset: the place in the trash
    home: str  # the dataset that it had
    deleted_at: int = 0
    purge_at: int = 0  # not before; and not while anything depends on it


class Snapshot(Stored, tag="Snapshot"):
    """What a volume held at one moment."""

    id: str
    uid: str  # of the cut; the snapshots of a group share it, and their names in ZFS come from it
    volume: str  # as it was called then
    volume_uid: str
    size_bytes: int
    volblocksize: int
    mode: Mode
    filesystem: Filesystem
    labels: Pairs = ()
    group: str = ""
    guid: str = ""  # ZFS's own identity of the snapshot, learned when it was taken
    created_at: int = 0


class SnapshotGroup(Stored, tag="SnapshotGroup"):
    """Snapshots of several volumes, taken at one moment."""

    id: str
    uid: str
    volumes: tuple[str, ...]
    snapshots: tuple[str, ...]
    labels: Pairs = ()
    created_at: int = 0


class Dependent(Stored, tag="Dependent"):
    """Something that needs the zvol of a volume: a snapshot of it, or a clone of one."""

    id: str  # <uid of the volume>/snapshots/<id> or .../volumes/<uid of the clone>
    name: str  # a resource name, for people: snapshots/<id>, volumes/<id>


class Publication(Stored, tag="Publication"):
    """One volume, exported to one host."""

    id: str  # <volume>/<host>
    volume: str
    host: str
    initiator: str  # the host's IQN when it was published
    transport: Transport = "ISCSI"
    access_mode: AccessMode = "SINGLE_NODE_WRITER"
    readonly: bool = False
    epoch: int = 0
    published_by: str = ""  # who asked: the host itself, a controller or an administrator
    client_operation: str = ""  # the operation of the client that asked, for its release
    rotation: int = 0  # counts its secrets, which may be made anew while a session lives
    rotation_due: bool = False  # new ones were asked for, and the host is to say when
    created_at: int = 0

    @property
    def secret(self) -> str:
        """The name of its secrets in the store."""
        return secret_name(self.id, self.rotation)


class Host(Stored, tag="Host"):
    """A machine that volumes are published to."""

    id: str
    iqn: str = ""
    nqn: str = ""
    addresses: tuple[str, ...] = ()
    labels: Pairs = ()
    max_attachments: int = 0  # 0: no limit
    created_at: int = 0
    updated_at: int = 0


class Mount(Record, tag="Mount"):
    """One path at which a staged volume appears."""

    path: str
    readonly: bool = False
    made_path: bool = False  # the mount point is ours, and goes with the mount


class Attachment(Stored, tag="Attachment"):
    """A volume of some server, on this consumer."""

    id: str  # the local name
    server: str
    volume: str
    disk: Disk
    portals: tuple[str, ...]
    mode: Mode
    epoch: int
    rotation: int = 0  # of the publication's secrets, as this host has them
    readonly: bool = False
    restore: Restore = "NEVER"
    published_here: str = ""  # the operation that published it; its Disconnect releases it
    state: AttachmentState = "ABSENT"
    filesystem: Filesystem = Filesystem()
    staging_path: str = ""
    made_staging_path: bool = False
    mount_options: tuple[str, ...] = ()
    stage_readonly: bool = False
    mounts: tuple[Mount, ...] = ()
    boot_id: str = ""  # in which it was connected last
    created_at: int = 0
    updated_at: int = 0

    @property
    def secret(self) -> str:
        """The name of its secrets in the store."""
        return secret_name(self.id, self.rotation)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path at which it is mounted."""
        return tuple(filter(None, (self.staging_path, *(each.path for each in self.mounts))))


def secret_name(owner: str, rotation: int) -> str:
    """Return the name of the secrets of a publication or an attachment: each rotation has its own.

    Old and new ones lie beside each other until the operation that changes them has ended.
    """
    return f"{owner}#{rotation}" if rotation else owner


class PendingRelease(Stored, tag="Debt"):
    """A release that a server still has to be told: retried until it answers."""

    id: str  # the operation that owes it
    server: str
    volume: str


class Condition(Stored, tag="Condition"):
    """What was found wrong with a volume and cannot just be put right; gone when it is well."""

    id: str  # the volume's uid
    sentences: tuple[str, ...]


class Token(Stored, tag="Token"):
    """A bearer token: only its hash is kept."""

    id: str
    digest: str  # SHA-256 of the token, hex
    role: str  # auth.Role, but never node
    subject: str  # the user or script it stands for
    created_at: int = 0
    expires_at: int = 0  # 0: never


class Issued(Stored, tag="Issued"):
    """A certificate that this host's authority made, or one of another that is revoked here."""

    id: str  # its SHA-256, hex
    subject: str  # host/take, user/ops
    role: str
    created_at: int = 0
    expires_at: int = 0
    revoked_at: int = 0


class Resources(Record):
    """The things that a step reads or changes, by kind."""

    datasets: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()  # uids
    targets: tuple[str, ...] = ()  # IQNs
    initiators: tuple[tuple[str, str], ...] = ()  # IQNs of a target and of an initiator of it
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

    server: str
    volume: str


class Action(Record, tag="Action", aliases=("Move",)):
    """A step and its direction, with the mark that says how far it got."""

    step: Step
    up: bool
    status: ActionStatus = "PENDING"
    took_ms: int = 0  # to make it; 0: it was so before, or took less

    @property
    def final(self) -> bool:
        """Whether there is no way back once this move was begun."""
        return self.up in self.step.final

    @property
    def way(self) -> str:
        """Its direction as a word."""
        return "do" if self.up else "undo"

    @property
    def description(self) -> str:
        """The change in words: "create target iqn...", "unmount /srv/data"."""
        return self.step.describe_do() if self.up else self.step.describe_undo()


class Change(Record, tag="Change"):
    """A record to put into a bucket of the store, or (None) a key to drop from it."""

    bucket: str
    key: str
    record: Stored | None = None


class Failure(Record, tag="Failure"):
    """An error as the store keeps it: see errors.revive."""

    name: str
    message: str
    reason: str = ""
    facts: Pairs = ()
    step: str = ""


def failure_of(error: ZfsiloError, step: str) -> Failure:
    """Return an error as the store keeps it."""
    return Failure(
        name=error.name,
        message=error.message,
        reason=error.reason,
        facts=pairs(error.facts),
        step=step,
    )


class Operation(Stored, tag="Operation"):
    """A list of moves on its way, stored before anything happens."""

    id: str  # ULID
    kind: str  # the request: create, publish, ...
    subject: str  # what it is about, as a resource name: volumes/data
    title: str  # for people: "publish data to take over iscsi"
    actions: tuple[Action, ...]
    claims: tuple[str, ...]
    commit: tuple[Change, ...]  # made with its end, in the same transaction
    revert: tuple[Change, ...] = ()  # made with the end of its rollback
    facts: Pairs = ()  # what steps learned on the way; they fill the subject's record at the commit
    fingerprint: str = ""  # of the request's kind and fields: an equal request joins
    caller: str = ""
    state: OperationState = "RUNNING"
    failure: Failure | None = None
    attempts: int = 0  # of a rollback that failed
    boot_id: str = ""
    batch: str = ""  # the unit that runs it, one after the other with more; "": one of its own
    created_at: int = 0
    ended_at: int = 0

    @property
    def unit(self) -> str:
        """What its unit of systemd is named after."""
        return self.batch or self.id

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDED

    @property
    def next_action(self) -> Action | None:
        """The first move that is not made yet."""
        return next((each for each in self.actions if each.status in ("PENDING", "STARTED")), None)

    @property
    def at_server(self) -> bool:
        """Whether its next move is a remote one, which is the daemon's to make."""
        action = self.next_action
        remote = action is not None and isinstance(action.step, RemoteStep)
        return remote and self.state in ("RUNNING", "WAITING")

    @property
    def progress(self) -> int:
        """How many hundredths of the moves are made; 100 only for one that ended well."""
        if self.state == "DONE":
            return 100
        made = sum(action.status in ("UNCHANGED", "DONE") for action in self.actions)
        return min(99, 100 * made // max(1, len(self.actions)))

    @property
    def behind(self) -> tuple[str, ...]:
        """What it has made and not taken back, in words."""
        return tuple(
            action.description for action in self.actions if action.status in ("STARTED", "DONE")
        )

    def with_status(self, index: int, status: ActionStatus, *, took_ms: int = 0) -> Operation:
        """Return the operation with one move's mark changed."""
        action = self.actions[index].but(
            status=status, took_ms=took_ms or self.actions[index].took_ms
        )
        return self.but(actions=(*self.actions[:index], action, *self.actions[index + 1 :]))
