"""The requests of a consumer: connect, stage, mount, and the way back; grow."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zfsilod.model.host_facts import FILESYSTEMS, Disk, Filesystem
from zfsilod.model.record import Record
from zfsilod.model.records import Action, Attachment, Mode, Mount, PendingRelease, Restore
from zfsilod.model.validation import check_id, check_path
from zfsilod.requests.request import Plan, Request, View, drop, drop_secret, put

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap
    from zfsilod.model.settings import Settings
    from zfsilod.storage.store import Transaction

MAX_MOUNTS = 64
MAX_OPTIONS = 32
OPTION = re.compile(r"[a-z][a-z0-9_]{0,31}(?:=[A-Za-z0-9._:-]{1,64})?")
OPTIONS = (
    "noatime",
    "nodiratime",
    "relatime",
    "strictatime",
    "lazytime",
    "nosuid",
    "nodev",
    "noexec",
    "sync",
    "dirsync",
    "discard",
    "nodiscard",
    "commit",
    "data",
    "errors",
    "barrier",
    "nobarrier",
    "journal_checksum",
    "user_xattr",
    "acl",
    "inode64",
    "largeio",
    "logbufs",
    "logbsize",
    "allocsize",
    "swalloc",
    "usrquota",
    "grpquota",
    "prjquota",
    "uquota",
    "gquota",
    "pquota",
)


class Connection(Record):
    """What a server tells the host that it publishes a volume to (FetchConnection)."""

    volume: str
    target: str
    portals: tuple[str, ...]
    serial: str
    size_bytes: int
    mode: Mode
    epoch: int
    rotation: int
    readonly: bool
    filesystem: Filesystem

    @property
    def disk(self) -> Disk:
        """The block device that the session will have."""
        return Disk(target=self.target, serial=self.serial, size_bytes=self.size_bytes)


class Connect(Request):
    """Log in to a volume of a server. The service fetches the connection before it plans."""

    kind = "connect"
    id: str
    server: str
    volume: str
    restore: Restore = "NEVER"
    publish_if_needed: bool = False
    epoch: int = 0  # 0: whichever stands

    def plan(self, view: View, seen: object) -> Plan:
        assert isinstance(seen, Fetched)
        found = view.txn.get(Attachment, check_id(self.id, "local name"))
        if found is not None and not self.is_for(found):
            raise AlreadyExists(
                f"the name {self.id} stands for {found.volume} of {found.server} here: give "
                "another local name",
                attachment=self.id,
            )
        self._check(view, seen.connection)
        if found is not None and found.epoch > seen.connection.epoch:
            raise FailedPrecondition(
                f"{self.id} is connected by a later publication ({found.epoch}) than the one that "
                f"{self.server} tells of ({seen.connection.epoch}): connect again, or disconnect "
                "with --force when the server's records are of an older day",
                reason="STALE_EPOCH",
                volume=self.id,
            )
        new = self._attachment(found, seen.connection, view, published=seen.published)
        owed = PendingRelease(id=view.operation_id, server=self.server, volume=self.volume)
        actions, commit = plans.up(plans.connection_steps(new)), [put(new)]
        if seen.published:
            commit.append(drop(owed))
        rotated = found is not None and found.secret != new.secret
        if found is not None and rotated:
            actions = (*plans.new_secrets([(found, new)]), *actions)
            commit.append(drop_secret(found.secret))
        return Plan(
            title=f"connect {self.volume} of {self.server}",
            claims=(f"attachment/{self.id}", f"target/{seen.connection.target}"),
            actions=actions,
            commit=tuple(commit),
            revert=(drop_secret(new.secret),) if rotated or not found else (),
            secrets={new.secret: seen.chap},
        )

    def standing(self, txn: Transaction, settings: Settings) -> tuple[Action, ...] | None:
        found = txn.get(Attachment, self.id)
        if found is None or found.state == "ABSENT" or self.epoch not in (0, found.epoch):
            return None
        if not self.is_for(found) or (self.restore, found.restore) == ("BOOT", "NEVER"):
            return None
        return plans.up(plans.connection_steps(found))

    def is_for(self, found: Attachment) -> bool:
        """Tell whether an attachment is of the volume that is asked for."""
        return (found.server, found.volume) == (self.server, self.volume)

    def _check(self, view: View, connection: Connection) -> None:
        if self.epoch > connection.epoch:
            raise FailedPrecondition(
                f"there is no epoch {self.epoch} of {self.volume} yet, now it is "
                f"{connection.epoch}",
                reason="NO_EPOCH",
                volume=self.volume,
            )
        if self.epoch not in (0, connection.epoch):
            raise FailedPrecondition(
                f"epoch {self.epoch} of {self.volume} has passed, now it is {connection.epoch}: "
                "it was published anew",
                reason="STALE_EPOCH",
                volume=self.volume,
            )
        for other in view.txn.scan(Attachment):
            if other.disk.target == connection.target and other.id != self.id:
                raise AlreadyExists(
                    f"{self.volume} of {self.server} is connected here as {other.id}",
                    attachment=other.id,
                )

    def _attachment(
        self, found: Attachment | None, connection: Connection, view: View, *, published: str
    ) -> Attachment:
        if found is not None and found.state != "ABSENT":
            return found.but(
                epoch=connection.epoch,
                rotation=connection.rotation,
                restore="BOOT" if "BOOT" in (found.restore, self.restore) else "NEVER",
                boot_id=view.boot_id,
                updated_at=view.now,
            )
        return Attachment(
            id=self.id,
            server=self.server,
            volume=self.volume,
            disk=connection.disk,
            portals=connection.portals,
            mode=connection.mode,
            epoch=connection.epoch,
            rotation=connection.rotation,
            readonly=connection.readonly,
            restore=self.restore,
            published_here=published,
            state="CONNECTED",
            filesystem=connection.filesystem,
            boot_id=view.boot_id,
            created_at=view.now,
            updated_at=view.now,
        )


class Fetched:
    """A connection with its secrets, and the operation that published it ("": somebody else)."""

    def __init__(self, connection: Connection, chap: Chap, *, published: str) -> None:
        self.connection = connection
        self.chap = chap
        self.published = published


class Stage(Request):
    """Make the filesystem once, and mount it at the staging path."""

    kind = "stage"
    id: str
    path: str = ""
    fs_type: str = ""  # "": what it has, else ext4
    mount_options: tuple[str, ...] = ()
    readonly: bool = False

    def plan(self, view: View, seen: object) -> Plan:
        found = need_attachment(view.txn, self.id)
        again = found.state in ("STAGED", "MOUNTED")
        if again and not self._same(found):
            raise FailedPrecondition(
                f"{self.id} is {found.state.lower()} at {found.staging_path} with other "
                "parameters: unstage it first",
                reason=found.state,
                volume=self.id,
            )
        new = found if again else self._staged(_as_served(found, seen), view)
        return Plan(
            title=f"stage {self.id} at {new.staging_path}",
            claims=(f"attachment/{self.id}", f"path/{new.staging_path}"),
            actions=plans.up(plans.staging_steps(new)),
            commit=(put(new),),
        )

    def standing(self, txn: Transaction, settings: Settings) -> tuple[Action, ...] | None:
        found = txn.get(Attachment, self.id)
        if found is None or found.state not in ("STAGED", "MOUNTED") or not self._same(found):
            return None
        return plans.up([*plans.connection_steps(found), *plans.staging_steps(found)])

    def _same(self, found: Attachment) -> bool:
        return (
            self.path in ("", found.staging_path)
            and self.fs_type in ("", found.filesystem.type)
            and (tuple(self.mount_options), self.readonly or found.readonly)
            == (found.mount_options, found.stage_readonly)
        )

    def _staged(self, found: Attachment, view: View) -> Attachment:
        path = check_path(self.path or f"{STAGING}/{self.id}")
        readonly = self.readonly or found.readonly
        filesystem = self._filesystem(found, view, readonly=readonly)
        return found.but(
            state="STAGED",
            staging_path=path,
            filesystem=filesystem,
            mount_options=check_options(self.mount_options),
            stage_readonly=readonly,
            updated_at=view.now,
        )

    def _filesystem(self, found: Attachment, view: View, *, readonly: bool) -> Filesystem:
        now = found.filesystem
        if self.fs_type not in ("", *FILESYSTEMS):
            raise InvalidArgument(
                f"the filesystem {self.fs_type[:40]!r} is none of {', '.join(FILESYSTEMS)}",
                reason="BAD_FILESYSTEM",
            )
        if found.mode == "BLOCK":
            return now
        known = now.state in ("READY", "CLONED")
        if known and self.fs_type not in ("", now.type):
            raise FailedPrecondition(
                f"{self.id} has an {now.type} filesystem, not {self.fs_type}: it is never "
                "formatted again",
                reason="OTHER_FILESYSTEM",
                volume=self.id,
            )
        if known:
            return now
        if readonly:
            raise FailedPrecondition(
                f"{self.id} has no filesystem yet: stage it writable once",
                reason="NO_FILESYSTEM",
                volume=self.id,
            )
        return Filesystem(
            state="FORMATTING",
            type=self.fs_type or now.type or "ext4",
            uuid=now.uuid or str(uuid.uuid4()),
            operation=view.operation_id,
            host=view.settings.host_id,
        )


class MountAt(Request):
    """Make a staged volume appear at one more path."""

    kind = "mount"
    id: str
    path: str
    readonly: bool = False
    only_here: bool = False  # refuse when it appears elsewhere already

    def plan(self, view: View, seen: object) -> Plan:
        found = need_attachment(view.txn, self.id)
        if found.state not in ("STAGED", "MOUNTED"):
            raise FailedPrecondition(
                f"{self.id} is {found.state.lower()}: stage it first",
                reason=found.state,
                volume=self.id,
            )
        path = check_path(self.path)
        here = next((each for each in found.mounts if each.path == path), None)
        if here is not None and here.readonly != self.readonly:
            raise AlreadyExists(
                f"{self.id} is mounted at {path} with other parameters", volume=self.id, path=path
            )
        elsewhere = [each.path for each in found.mounts if each is not here]
        if self.only_here and elsewhere:
            raise FailedPrecondition(
                f"{self.id} is mounted at {elsewhere[0]}, and may be at one path only",
                reason="MOUNTED_ELSEWHERE",
                volume=self.id,
                path=elsewhere[0],
            )
        if len(found.mounts) >= MAX_MOUNTS:
            raise FailedPrecondition(f"{self.id} has {MAX_MOUNTS} mounts: no more are allowed")
        mount = here or Mount(path=path, readonly=self.readonly)
        mounts = found.mounts if here else (*found.mounts, mount)
        return Plan(
            title=f"mount {self.id} at {path}",
            claims=(f"attachment/{self.id}", f"path/{path}"),
            actions=plans.up(plans.mounting_steps(found, mount)),
            commit=(put(found.but(state="MOUNTED", mounts=mounts, updated_at=view.now)),),
        )

    def standing(self, txn: Transaction, settings: Settings) -> tuple[Action, ...] | None:
        found = txn.get(Attachment, self.id)
        mounts = found.mounts if found else ()
        here = next((each for each in mounts if each.path == self.path), None)
        if found is None or here is None or here.readonly != self.readonly:
            return None
        return plans.up(
            [
                *plans.connection_steps(found),
                *plans.staging_steps(found),
                *plans.mounting_steps(found, here),
            ]
        )


class Grow(Request):
    """See and use the size that the server now has; the service asks it before it plans."""

    kind = "grow"
    id: str

    def plan(self, view: View, seen: object) -> Plan:
        assert isinstance(seen, int)
        found = need_attachment(view.txn, self.id)
        if seen < found.disk.size_bytes:
            raise FailedPrecondition(
                f"{found.volume} of {found.server} is smaller than it was: nothing is changed",
                reason="SHRUNK",
                volume=self.id,
            )
        new = found.but(disk=found.disk.but(size_bytes=seen), updated_at=view.now)
        return Plan(
            title=f"grow {self.id} to {seen} bytes",
            claims=(f"attachment/{self.id}",),
            actions=plans.growth(found, seen),
            commit=(put(new),),
        )


def _as_served(found: Attachment, seen: object) -> Attachment:
    """Return an attachment as the server tells it, when it does: its size and its filesystem.

    A Stage that failed may have come as far as mkfs: the server was told, our record was not.
    """
    assert seen is None or isinstance(seen, Connection)
    if seen is None or seen.epoch != found.epoch:
        return found
    size = max(seen.size_bytes, found.disk.size_bytes)
    return found.but(disk=found.disk.but(size_bytes=size), filesystem=seen.filesystem)


STAGING = "/var/lib/zfsilo/staging"


def need_attachment(txn: Transaction, attachment_id: str) -> Attachment:
    """Return a connected volume of this consumer, else raise NotFound or FailedPrecondition."""
    found = txn.get(Attachment, check_id(attachment_id, "volume id"))
    if found is None:
        raise FailedPrecondition(
            f"{attachment_id} is not connected on this host: connect it first",
            reason="NOT_CONNECTED",
            volume=attachment_id,
        )
    return found


def check_options(options: tuple[str, ...]) -> tuple[str, ...]:
    """Return mount options that are on the list of harmless ones, else raise InvalidArgument."""
    if len(options) > MAX_OPTIONS:
        raise InvalidArgument(
            f"{len(options)} mount options are too many: at most {MAX_OPTIONS}",
            reason="BAD_MOUNT_OPTION",
        )
    for option in options:
        if not OPTION.fullmatch(option) or option.partition("=")[0] not in OPTIONS:
            raise InvalidArgument(
                f"the mount option {option[:80]!r} is not allowed", reason="BAD_MOUNT_OPTION"
            )
    return tuple(options)
