"""Requests by which a client uses a connected volume: stage, mount, grow."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ZfsiloError
from zfsilod.model.host_facts import FILESYSTEMS, Filesystem, furthest
from zfsilod.model.mount_options import check_options
from zfsilod.model.mount_path import STAGING, check_path
from zfsilod.model.records import Action, Attachment, Mount
from zfsilod.model.sizes import show_round
from zfsilod.model.validation import check_id
from zfsilod.requests import paths
from zfsilod.requests.request import Plan, Request, View, put
from zfsilod.requests.rights import check_attachment, check_mount_path
from zfsilod.requests.volumes import check_volume_etag

if TYPE_CHECKING:
    from zfsilod.model.connection import Connection
    from zfsilod.model.identity import Caller
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction


MAX_MOUNTS = 64

log = logging.getLogger(__name__)


class Stage(Request["Connection | None"]):
    """Make the filesystem once, and mount it at the staging path.

    Input: the current connection of the server; None when the server does not answer.
    """

    kind = "stage"
    on_pool = False
    id: str
    path: str = ""
    fs_type: str = ""  # "": the type of the existing filesystem, else ext4
    mount_options: tuple[str, ...] = ()
    readonly: bool = False
    etag: str = ""
    root: str = ""  # folder that the path may not leave: requests/paths.py

    async def resolved(self, context: Context, caller: Caller) -> Stage:
        path, root = await paths.resolve(context, caller, self.id, self.path)
        return self.but(path=path, root=root)

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        check_volume_etag(view.txn, self.id, self.etag)
        attachment = view.txn.get(Attachment, self.id)
        if attachment is None or attachment.state not in ("STAGED", "MOUNTED"):
            return None
        if not self._same(attachment):
            return None
        connected = plans.connection_steps(attachment, view.settings.lost_session_s)
        health = plans.health_steps(attachment)
        return plans.up([*connected, *health, *plans.staging_steps(attachment)])

    def authorise(self, view: View) -> None:
        check_attachment(view, self.id)
        check_mount_path(view, self.path, self.root)

    async def gather(self, context: Context, operation_id: str) -> Connection | None:
        """Ask the server: the volume may have grown, or an earlier attempt may have formatted it.

        Without an answer the volume is staged as this host has recorded it.
        """
        if self.readonly:
            return None
        try:
            return await _connection(context, self.id)
        except ZfsiloError as error:
            log.info("%s is staged as recorded on this host: %s", self.id, error.message)
            return None

    def plan(self, view: View, inputs: Connection | None) -> Plan:
        check_volume_etag(view.txn, self.id, self.etag)
        return self.plan_for(need_attachment(view.txn, self.id), view, inputs)

    def plan_for(self, attachment: Attachment, view: View, inputs: Connection | None) -> Plan:
        """Return the plan for an attachment as it is, or as an earlier plan leaves it."""
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
            actions=plans.up([*plans.health_steps(attachment), *plans.staging_steps(new)]),
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
            staging_path=check_path(self.path or f"{STAGING}{self.id}"),
            staging_root=self.root,
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
    """Mount a staged volume at another path."""

    kind = "mount"
    on_pool = False
    id: str
    path: str
    readonly: bool = False
    only_here: bool = False  # refuse when it is mounted at another path
    etag: str = ""
    root: str = ""  # folder that the path may not leave: requests/paths.py

    async def resolved(self, context: Context, caller: Caller) -> MountAt:
        path, root = await paths.resolve(context, caller, self.id, self.path)
        return self.but(path=path, root=root)

    def authorise(self, view: View) -> None:
        check_attachment(view, self.id)
        check_mount_path(view, self.path, self.root)

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        check_volume_etag(view.txn, self.id, self.etag)
        attachment = view.txn.get(Attachment, self.id)
        mount = _mount_at(attachment, self.path) if attachment else None
        if attachment is None or mount is None or mount.readonly != self.readonly:
            return None
        return plans.up(
            [
                *plans.connection_steps(attachment, view.settings.lost_session_s),
                *plans.health_steps(attachment),
                *plans.staging_steps(attachment),
                *plans.mounting_steps(attachment, mount),
            ]
        )

    def plan(self, view: View, inputs: None) -> Plan:
        check_volume_etag(view.txn, self.id, self.etag)
        return self.plan_for(need_attachment(view.txn, self.id), view)

    def plan_for(self, attachment: Attachment, view: View) -> Plan:
        """Return the plan for an attachment as it is, or as an earlier plan leaves it."""
        if attachment.state not in ("STAGED", "MOUNTED"):
            raise FailedPrecondition(
                f"{self.id} is {attachment.state.lower()}: stage it first",
                reason=attachment.state,
                volume=self.id,
            )
        path = check_path(self.path)
        mount = _mount_at(attachment, path)
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
        new = mount or Mount(path=path, readonly=self.readonly, root=self.root)
        mounts = attachment.mounts if mount else (*attachment.mounts, new)
        return Plan(
            title=f"mount {self.id} at {path}",
            claims=(f"attachment/{self.id}", f"path/{path}"),
            actions=plans.up(plans.mounting_steps(attachment, new)),
            commit=(put(attachment.but(state="MOUNTED", mounts=mounts, updated_at=view.now)),),
        )


class Grow(Request[int]):
    """Grow the disk and the filesystem. Input: the size that the server reports, in bytes."""

    kind = "grow"
    on_pool = False
    id: str
    etag: str = ""

    def authorise(self, view: View) -> None:
        check_attachment(view, self.id)

    async def gather(self, context: Context, operation_id: str) -> int:
        return (await _connection(context, self.id)).size_bytes

    def plan(self, view: View, inputs: int) -> Plan:
        check_volume_etag(view.txn, self.id, self.etag)
        attachment = need_attachment(view.txn, self.id)
        if inputs < attachment.disk.size_bytes:
            raise FailedPrecondition(
                f"{attachment.volume} of {attachment.server} is smaller than before; it cannot be "
                "resized on this host",
                reason="SHRUNK",
                volume=self.id,
            )
        disk = attachment.disk.but(size_bytes=inputs)
        return Plan(
            title=f"grow {self.id} to {show_round(inputs)}",
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

    After a Stage that failed behind mkfs, only the server has recorded the filesystem. A server
    that was restored may have forgotten it.
    """
    if connection is None or connection.epoch != attachment.epoch:
        return attachment
    size = max(connection.size_bytes, attachment.disk.size_bytes)
    disk = attachment.disk.but(size_bytes=size)
    filesystem = furthest(attachment.filesystem, connection.filesystem)
    return attachment.but(disk=disk, filesystem=filesystem)


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
