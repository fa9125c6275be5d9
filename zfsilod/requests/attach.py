"""Requests by which a client uses a volume: connect, stage, mount, grow."""

from __future__ import annotations

import logging
import re
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from zfsilod.engine import plans
from zfsilod.model.connection import Connection, FetchedConnection
from zfsilod.model.errors import (
    AlreadyExists,
    Busy,
    FailedPrecondition,
    InvalidArgument,
    ZfsiloError,
)
from zfsilod.model.host_facts import FILESYSTEMS, Disk, Filesystem
from zfsilod.model.record import Record
from zfsilod.model.records import Action, Attachment, Mount, PendingRelease, Restore
from zfsilod.model.validation import check_id, check_path
from zfsilod.requests.detach import Clear, Disconnect
from zfsilod.requests.request import Plan, Request, View, drop, drop_secret, put
from zfsilod.requests.rights import check_attachment, check_connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.host import HostAdapters
    from zfsilod.requests.context import Context
    from zfsilod.storage.store import Transaction

STAGING = "/var/lib/zfsilo/staging"
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

log = logging.getLogger(__name__)


class Leftover(Record):
    """A session with the target that no record knows, and its users on this host."""

    users: tuple[str, ...]  # devices made of the disk, and mount points
    lost: bool

    @property
    def paths(self) -> tuple[str, ...]:
        """The users that are mount points."""
        return tuple(user for user in self.users if user.startswith("/"))


class ConnectInputs(NamedTuple):
    """The answer of the server, and a leftover session on this host."""

    fetched: FetchedConnection
    leftover: Leftover | None


class Connect(Request[ConnectInputs]):
    """Log in to a volume of a server."""

    kind = "connect"
    id: str
    server: str
    volume: str
    restore: Restore = "NEVER"
    publish_if_needed: bool = False
    epoch: int = 0  # 0: any

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        attachment = view.txn.get(Attachment, self.id)
        if attachment is None or attachment.state == "ABSENT":
            return None
        if self.epoch not in (0, attachment.epoch) or not self.is_for(attachment):
            return None
        if (self.restore, attachment.restore) == ("BOOT", "NEVER"):
            return None
        return plans.up(plans.connection_steps(attachment))

    def authorise(self, view: View) -> None:
        check_connect(view, restore=self.restore, publish_if_needed=self.publish_if_needed)
        check_attachment(view, self.id)

    async def gather(self, context: Context, operation_id: str) -> ConnectInputs:
        fetched = await self._fetch(context, operation_id)
        with context.read() as txn:
            known = txn.get(Attachment, self.id) is not None
        if known:
            return ConnectInputs(fetched, None)
        disk = fetched.connection.disk
        return ConnectInputs(fetched, await context.look(partial(_leftover, context.machine, disk)))

    async def _fetch(self, context: Context, operation_id: str) -> FetchedConnection:
        """Ask the server for the connection, and to publish the volume first where that was asked.

        The release of what this operation publishes is recorded before the call; the commit of the
        operation drops it.
        """
        try:
            connection, chap = await context.servers.fetch(self.server, self.volume)
        except FailedPrecondition as error:
            if error.reason != "NOT_PUBLISHED" or not self.publish_if_needed:
                raise
        else:
            return FetchedConnection(connection, chap)
        self._check_not_fenced(context)
        release = PendingRelease(id=operation_id, server=self.server, volume=self.volume)
        await context.write(lambda txn: txn.put(release))
        await context.servers.publish(self.server, self.volume, client_operation=operation_id)
        connection, chap = await context.servers.fetch(self.server, self.volume)
        return FetchedConnection(connection, chap, published=operation_id)

    def _check_not_fenced(self, context: Context) -> None:
        """Raise when the volume was taken from this host: it is not published again by itself."""
        with context.read() as txn:
            attachment = txn.get(Attachment, self.id)
        if attachment is not None and self.is_for(attachment):
            raise FailedPrecondition(
                f"publication {attachment.epoch} of {self.volume} to this host was withdrawn; run "
                f"zfsiloctl volume disconnect --force {self.id}, then connect again",
                reason="FENCED",
                volume=self.id,
            )

    def prerequisites(self, view: View, inputs: ConnectInputs) -> Sequence[Request[Any]]:
        connection, leftover = inputs.fetched.connection, inputs.leftover
        attachment = self._check(view, connection)
        if attachment is not None and attachment.epoch < connection.epoch:
            return [Disconnect(id=self.id, force=True, epoch=attachment.epoch)]  # its secrets ended
        if leftover is None or attachment is not None:
            return []
        if leftover.users and not leftover.lost:
            raise Busy(
                f"{self.id} is in use on this host by {', '.join(leftover.users)}, which no record "
                "knows: end that use first",
                reason="IN_USE",
                volume=self.id,
                users=" ".join(leftover.users),
            )
        return [Clear(id=self.id, disk=connection.disk, paths=leftover.paths)]

    def plan(self, view: View, inputs: ConnectInputs) -> Plan:
        fetched = inputs.fetched
        connection = fetched.connection
        attachment = self._check(view, connection)
        if any(isinstance(request, Disconnect) for request in view.before):
            attachment = None
        if attachment is not None and attachment.epoch > connection.epoch:
            raise FailedPrecondition(
                f"{self.id} is connected with publication {attachment.epoch}, but {self.server} "
                f"reports {connection.epoch}; reconnect, or use `disconnect --force` if the server "
                "was restored from a backup",
                reason="STALE_EPOCH",
                volume=self.id,
            )
        new = self._attachment(attachment, connection, view, published=fetched.published)
        actions, commit = plans.up(plans.connection_steps(new)), [put(new)]
        if fetched.published:
            release = PendingRelease(id=view.operation_id, server=self.server, volume=self.volume)
            commit.append(drop(release))
        rotated = attachment is not None and attachment.secret != new.secret
        if attachment is not None and rotated:
            actions = (*plans.new_secrets([(attachment, new)]), *actions)
            commit.append(drop_secret(attachment.secret))
        return Plan(
            title=f"connect {self.volume} of {self.server}",
            claims=(f"attachment/{self.id}", f"target/{connection.target}"),
            actions=actions,
            commit=tuple(commit),
            revert=(drop_secret(new.secret),) if rotated or not attachment else (),
            secrets={new.secret: fetched.chap},
        )

    def preview(self) -> Connect:
        return self.but(publish_if_needed=False)

    def is_for(self, attachment: Attachment) -> bool:
        """Tell whether an attachment is of the requested volume."""
        return (attachment.server, attachment.volume) == (self.server, self.volume)

    def _check(self, view: View, connection: Connection) -> Attachment | None:
        """Return the attachment of this name. Raises when name, epoch or target do not fit it."""
        attachment = view.txn.get(Attachment, check_id(self.id, "local name"))
        if attachment is not None and not self.is_for(attachment):
            raise AlreadyExists(
                f"local name {self.id} is in use for {attachment.volume} of {attachment.server}: "
                "choose another local name",
                attachment=self.id,
            )
        if self.epoch > connection.epoch:
            raise FailedPrecondition(
                f"{self.volume} has no epoch {self.epoch} yet; the current one is "
                f"{connection.epoch}",
                reason="NO_EPOCH",
                volume=self.volume,
            )
        if self.epoch not in (0, connection.epoch):
            raise FailedPrecondition(
                f"epoch {self.epoch} of {self.volume} has passed: it was published again with "
                f"epoch {connection.epoch}",
                reason="STALE_EPOCH",
                volume=self.volume,
            )
        for other in view.txn.scan(Attachment):
            if other.disk.target == connection.target and other.id != self.id:
                raise AlreadyExists(
                    f"{self.volume} of {self.server} is already connected as {other.id}",
                    attachment=other.id,
                )
        return attachment

    def _attachment(
        self, before: Attachment | None, connection: Connection, view: View, *, published: str
    ) -> Attachment:
        if before is not None and before.state != "ABSENT":
            return before.but(
                epoch=connection.epoch,
                rotation=connection.rotation,
                restore="BOOT" if "BOOT" in (before.restore, self.restore) else "NEVER",
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


def _leftover(machine: HostAdapters, disk: Disk) -> Leftover | None:
    """Return the session that this host has with a disk's target, if any."""
    if not machine.iscsi.has_any_session(disk):
        return None
    users = tuple(machine.iscsi.users(disk))
    return Leftover(users=users, lost=bool(users) and machine.iscsi.is_lost(disk))


class Stage(Request["Connection | None"]):
    """Make the filesystem once, and mount it at the staging path.

    Input: the connection as the server describes it now; None when the server does not answer.
    """

    kind = "stage"
    id: str
    path: str = ""
    fs_type: str = ""  # "": the present one, else ext4
    mount_options: tuple[str, ...] = ()
    readonly: bool = False

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        attachment = view.txn.get(Attachment, self.id)
        if attachment is None or attachment.state not in ("STAGED", "MOUNTED"):
            return None
        if not self._same(attachment):
            return None
        return plans.up([*plans.connection_steps(attachment), *plans.staging_steps(attachment)])

    def authorise(self, view: View) -> None:
        check_attachment(view, self.id)

    async def gather(self, context: Context, operation_id: str) -> Connection | None:
        """Ask the server: the volume may have grown, or an earlier attempt have formatted it.

        A server that does not answer must not keep a volume from being used.
        """
        if self.readonly:
            return None
        try:
            return await _connection(context, self.id)
        except ZfsiloError as error:
            log.info("%s is staged as recorded here: %s", self.id, error.message)
            return None

    def plan(self, view: View, inputs: Connection | None) -> Plan:
        attachment = need_attachment(view.txn, self.id)
        staged = attachment.state in ("STAGED", "MOUNTED")
        if staged and not self._same(attachment):
            raise FailedPrecondition(
                f"{self.id} is {attachment.state.lower()} at {attachment.staging_path} with other "
                "parameters: unstage it first",
                reason=attachment.state,
                volume=self.id,
            )
        new = attachment if staged else self._staged(_as_served(attachment, inputs), view)
        return Plan(
            title=f"stage {self.id} at {new.staging_path}",
            claims=(f"attachment/{self.id}", f"path/{new.staging_path}"),
            actions=plans.up(plans.staging_steps(new)),
            commit=(put(new),),
        )

    def _same(self, attachment: Attachment) -> bool:
        return (
            self.path in ("", attachment.staging_path)
            and self.fs_type in ("", attachment.filesystem.type)
            and tuple(self.mount_options) == attachment.mount_options
            and (self.readonly or attachment.readonly) == attachment.stage_readonly
        )

    def _staged(self, attachment: Attachment, view: View) -> Attachment:
        readonly = self.readonly or attachment.readonly
        return attachment.but(
            state="STAGED",
            staging_path=check_path(self.path or f"{STAGING}/{self.id}"),
            filesystem=self._filesystem(attachment, view, readonly=readonly),
            mount_options=check_options(self.mount_options),
            stage_readonly=readonly,
            updated_at=view.now,
        )

    def _filesystem(self, attachment: Attachment, view: View, *, readonly: bool) -> Filesystem:
        present = attachment.filesystem
        if self.fs_type not in ("", *FILESYSTEMS):
            raise InvalidArgument(
                f"unknown filesystem {self.fs_type[:40]!r}: use {' or '.join(FILESYSTEMS)}",
                reason="BAD_FILESYSTEM",
            )
        if attachment.mode == "BLOCK":
            return present
        known = present.state in ("READY", "CLONED")
        if known and self.fs_type not in ("", present.type):
            raise FailedPrecondition(
                f"{self.id} has an {present.type} filesystem, not {self.fs_type}: a volume is "
                "formatted only once",
                reason="OTHER_FILESYSTEM",
                volume=self.id,
            )
        if known:
            return present
        if readonly:
            raise FailedPrecondition(
                f"{self.id} has no filesystem yet: stage it writable once",
                reason="NO_FILESYSTEM",
                volume=self.id,
            )
        return Filesystem(
            state="FORMATTING",
            type=self.fs_type or present.type or "ext4",
            uuid=present.uuid or str(uuid.uuid4()),
            operation=view.operation_id,
            host=view.settings.host_id,
        )


class MountAt(Request[None]):
    """Mount a staged volume at one more path."""

    kind = "mount"
    id: str
    path: str
    readonly: bool = False
    only_here: bool = False  # refuse when it is mounted at another path

    def authorise(self, view: View) -> None:
        check_attachment(view, self.id)

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        attachment = view.txn.get(Attachment, self.id)
        mount = _mount_at(attachment, self.path) if attachment else None
        if attachment is None or mount is None or mount.readonly != self.readonly:
            return None
        return plans.up(
            [
                *plans.connection_steps(attachment),
                *plans.staging_steps(attachment),
                *plans.mounting_steps(attachment, mount),
            ]
        )

    def plan(self, view: View, inputs: None) -> Plan:
        attachment = need_attachment(view.txn, self.id)
        if attachment.state not in ("STAGED", "MOUNTED"):
            raise FailedPrecondition(
                f"{self.id} is {attachment.state.lower()}: stage it first",
                reason=attachment.state,
                volume=self.id,
            )
        path = check_path(self.path)
        mount = _mount_at(attachment, path)
        self._check(attachment, mount, path)
        new = mount or Mount(path=path, readonly=self.readonly)
        mounts = attachment.mounts if mount else (*attachment.mounts, new)
        return Plan(
            title=f"mount {self.id} at {path}",
            claims=(f"attachment/{self.id}", f"path/{path}"),
            actions=plans.up(plans.mounting_steps(attachment, new)),
            commit=(put(attachment.but(state="MOUNTED", mounts=mounts, updated_at=view.now)),),
        )

    def _check(self, attachment: Attachment, mount: Mount | None, path: str) -> None:
        if mount is not None and mount.readonly != self.readonly:
            raise AlreadyExists(
                f"{self.id} is mounted at {path} with other parameters", volume=self.id, path=path
            )
        others = [other.path for other in attachment.mounts if other is not mount]
        if self.only_here and others:
            raise FailedPrecondition(
                f"{self.id} is mounted at {others[0]} and may be mounted at one path only",
                reason="MOUNTED_ELSEWHERE",
                volume=self.id,
                path=others[0],
            )
        if len(attachment.mounts) >= MAX_MOUNTS:
            raise FailedPrecondition(f"{self.id} has {MAX_MOUNTS} mounts, which is the limit")


class Grow(Request[int]):
    """Use the size that the server reports now, in bytes: the input."""

    kind = "grow"
    id: str

    def authorise(self, view: View) -> None:
        check_attachment(view, self.id)

    async def gather(self, context: Context, operation_id: str) -> int:
        return (await _connection(context, self.id)).size_bytes

    def plan(self, view: View, inputs: int) -> Plan:
        attachment = need_attachment(view.txn, self.id)
        if inputs < attachment.disk.size_bytes:
            raise FailedPrecondition(
                f"{attachment.volume} of {attachment.server} is smaller than before; nothing was "
                "changed",
                reason="SHRUNK",
                volume=self.id,
            )
        disk = attachment.disk.but(size_bytes=inputs)
        return Plan(
            title=f"grow {self.id} to {inputs} bytes",
            claims=(f"attachment/{self.id}",),
            actions=plans.growth(attachment, inputs),
            commit=(put(attachment.but(disk=disk, updated_at=view.now)),),
        )


async def _connection(context: Context, attachment_id: str) -> Connection:
    """Fetch the connection of an attachment from its server."""
    with context.read() as txn:
        attachment = need_attachment(txn, attachment_id)
    connection, _chap = await context.servers.fetch(attachment.server, attachment.volume)
    return connection


def _mount_at(attachment: Attachment, path: str) -> Mount | None:
    return next((mount for mount in attachment.mounts if mount.path == path), None)


def _as_served(attachment: Attachment, connection: Connection | None) -> Attachment:
    """Return an attachment with the size and the filesystem that its server reports.

    A Stage that failed after mkfs has told the server, but not the record of this host.
    """
    if connection is None or connection.epoch != attachment.epoch:
        return attachment
    size = max(connection.size_bytes, attachment.disk.size_bytes)
    disk = attachment.disk.but(size_bytes=size)
    return attachment.but(disk=disk, filesystem=connection.filesystem)


def need_attachment(txn: Transaction, attachment_id: str) -> Attachment:
    """Return an attachment of this client. Raises FailedPrecondition when there is none."""
    attachment = txn.get(Attachment, check_id(attachment_id, "volume id"))
    if attachment is None:
        raise FailedPrecondition(
            f"{attachment_id} is not connected on this host: connect it first",
            reason="NOT_CONNECTED",
            volume=attachment_id,
        )
    return attachment


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
