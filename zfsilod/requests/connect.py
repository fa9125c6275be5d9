"""The request that connects a client to a volume of a server, and the inputs of its plan."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from zfsilod.engine import plans
from zfsilod.host.transports import session_adapter
from zfsilod.model.connection import Connection, FetchedConnection, foreign_target
from zfsilod.model.errors import (
    AlreadyExists,
    Busy,
    FailedPrecondition,
    ResourceExhausted,
    ZfsiloError,
)
from zfsilod.model.record import Record
from zfsilod.model.records import Action, Attachment, PendingRelease
from zfsilod.model.validation import check_id
from zfsilod.requests.detach import Clear, Disconnect
from zfsilod.requests.request import Plan, Request, View, drop, drop_secret, put
from zfsilod.requests.rights import check_attachment, check_connect, check_publisher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.host import HostAdapters
    from zfsilod.model.host_facts import Disk
    from zfsilod.model.identity import Caller
    from zfsilod.model.words import Restore, Transport
    from zfsilod.requests.context import Context

MAX_PENDING = 1000  # releases that servers have not confirmed


class Leftover(Record):
    """A session or node record of the target without a record in the store.

    `users`: of its disk, on this host.
    """

    owner: str  # server for which zfsilo made it; "": unknown
    users: tuple[str, ...]  # devices on top of the disk, and mount points
    lost: bool
    session: bool  # otherwise there is a node record only

    @property
    def paths(self) -> tuple[str, ...]:
        """The users that are mount points."""
        return tuple(user for user in self.users if user.startswith("/"))


class ConnectInputs(NamedTuple):
    """The connection that the server returned, and a leftover session on this host."""

    fetched: FetchedConnection
    leftover: Leftover | None


class Connect(Request[ConnectInputs]):
    """Log in to a volume of a server."""

    kind = "connect"
    on_pool = False
    id: str
    server: str
    volume: str
    restore: Restore = "NEVER"
    publish_if_needed: bool = False
    transport: Transport | Literal[""] = ""  # of that publication; "": that of the volume
    tls: bool = False  # of that publication, too; refused if it has none
    epoch: int = 0  # 0: any
    differs: bool = False  # the server answers otherwise than the attachment says: see resolved

    async def resolved(self, context: Context, caller: Caller) -> Connect:
        """Ask the server whether its portals or its target are those of the attachment.

        Without an answer "already so" is judged by the records of this host.
        """
        with context.read() as txn:
            attachment = txn.get(Attachment, self.id)
        if attachment is None or attachment.state == "ABSENT" or not self.is_for(attachment):
            return self
        try:
            connection, _chap = await context.servers.fetch(self.server, self.volume)
        except ZfsiloError:
            return self
        return self.but(differs=is_outdated(attachment, connection))

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        attachment = view.txn.get(Attachment, self.id)
        if attachment is None or attachment.state == "ABSENT" or self.differs:
            return None
        if self.epoch not in (0, attachment.epoch) or not self.is_for(attachment):
            return None
        if (self.restore, attachment.restore) == ("BOOT", "NEVER"):
            return None
        if self.tls and not attachment.tls:
            return None
        return plans.up(plans.connection_steps(attachment, view.settings.lost_session_s))

    def authorise(self, view: View) -> None:
        check_connect(view, restore=self.restore, publish_if_needed=self.publish_if_needed)
        check_attachment(view, self.id)

    async def gather(self, context: Context, operation_id: str) -> ConnectInputs:
        fetched = await self._fetch(context, operation_id)
        with context.read() as txn:
            attachment = txn.get(Attachment, self.id)
        disk = fetched.connection.disk
        if attachment is not None and attachment.disk.target == disk.target:
            return ConnectInputs(fetched, None)
        return ConnectInputs(
            fetched, await context.look(partial(find_leftover, context.machine, disk))
        )

    async def _fetch(self, context: Context, operation_id: str) -> FetchedConnection:
        """Fetch the connection from the server; with `publish_if_needed`, publish the volume first.

        A pending release is recorded before the volume is published, so that a failed operation
        releases it; the commit of the operation drops the record.
        """
        try:
            connection, chap = await context.servers.fetch(self.server, self.volume)
        except FailedPrecondition as error:
            if error.reason != "NOT_PUBLISHED" or not self.publish_if_needed:
                raise
        else:
            with context.read() as txn:  # an earlier gather of this operation may have published it
                published = txn.get(PendingRelease, operation_id) is not None
            return FetchedConnection(connection, chap, published=operation_id if published else "")
        with context.read() as txn:
            attachment = txn.get(Attachment, self.id)
            pending = sum(1 for _release in txn.scan_plain(PendingRelease))
        if pending >= MAX_PENDING:
            raise ResourceExhausted(
                f"{pending} volumes wait for their release at servers that do not answer: make "
                "the servers reachable (zfsiloctl status), or remove them",
                reason="TOO_MANY",
            )
        if attachment is not None and self.is_for(attachment):
            # Fenced: this host never publishes such a volume again by itself.
            raise FailedPrecondition(
                f"publication {attachment.epoch} of {self.volume} to this host was withdrawn; run "
                f"zfsiloctl volume disconnect --force {self.id}, then connect again",
                reason="FENCED",
                volume=self.id,
            )
        release = PendingRelease(id=operation_id, server=self.server, volume=self.volume)
        await context.write(lambda txn: txn.put(release))
        await context.servers.publish(
            self.server,
            self.volume,
            client_operation=operation_id,
            transport=self.transport,
            tls=self.tls,
        )
        connection, chap = await context.servers.fetch(self.server, self.volume)
        return FetchedConnection(connection, chap, published=operation_id)

    def prerequisites(self, view: View, inputs: ConnectInputs) -> Sequence[Request[Any]]:
        connection, leftover = inputs.fetched.connection, inputs.leftover
        attachment = self._check(view, connection)
        if leftover is not None and leftover.owner != self.server:
            raise FailedPrecondition(
                foreign_target(connection.target, leftover.owner),
                reason="FOREIGN_TARGET",
                volume=self.id,
                target=connection.target,
            )
        if attachment is not None and attachment.epoch < connection.epoch:
            # The secrets of the former publication are not valid any more.
            return [Disconnect(id=self.id, force=True, epoch=attachment.epoch)]
        if leftover is None or not leftover.session or attachment is not None:
            return []
        if leftover.users and not leftover.lost:
            raise Busy(
                f"{self.id} is in use on this host by {', '.join(leftover.users)}, outside of "
                "zfsilo: end that use first",
                reason="IN_USE",
                volume=self.id,
                users=" ".join(leftover.users),
            )
        return [Clear(id=self.id, disk=connection.disk, paths=leftover.paths)]

    def plan(self, view: View, inputs: ConnectInputs) -> Plan:
        fetched = inputs.fetched
        connection = fetched.connection
        attachment = self._check(view, connection)
        if any(isinstance(request, Disconnect) for request in view.finished):
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
        lost_session_s = view.settings.lost_session_s
        steps = plans.connection_steps(new, lost_session_s)
        if attachment is not None and attachment.state != "ABSENT":
            steps = plans.reconnection_steps(attachment, new, lost_session_s)
        actions, commit = plans.up(steps), [put(new)]
        if fetched.published:
            release = PendingRelease(id=view.operation_id, server=self.server, volume=self.volume)
            commit.append(drop(release))
        rotated = attachment is not None and attachment.secret != new.secret
        if attachment is not None and rotated:
            actions = (*plans.new_secrets([(attachment, new)], lost_session_s), *actions)
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
        """Return the attachment of this name. Raises when name, epoch or target do not match."""
        check_publisher(view, self.server, connection)
        attachment = view.txn.get(Attachment, check_id(self.id, "local name"))
        if attachment is not None and not self.is_for(attachment):
            raise AlreadyExists(
                f"local name {self.id} is in use for {attachment.volume} of {attachment.server}: "
                "use another local name",
                attachment=self.id,
            )
        if self.tls and not connection.tls:
            raise FailedPrecondition(
                f"{self.volume} of {self.server} is published to this host without TLS: unpublish "
                "it there, then publish it over nvme with TLS",
                reason="NO_TLS",
                volume=self.volume,
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
                f"epoch {self.epoch} of {self.volume} has expired: it was published again with "
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
                portals=connection.portals,
                readonly=connection.readonly,
                epoch=connection.epoch,
                tls=connection.tls,
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
            tls=connection.tls,
            rotation=connection.rotation,
            readonly=connection.readonly,
            restore=self.restore,
            connected_by=view.caller.role,
            published_here=published,
            state="CONNECTED",
            filesystem=connection.filesystem,
            boot_id=view.boot_id,
            created_at=view.now,
            updated_at=view.now,
        )


def is_outdated(attachment: Attachment, current: Connection) -> bool:
    """Tell whether the server serves the volume otherwise than the attachment says."""
    return (attachment.disk.target, attachment.portals, attachment.readonly) != (
        current.target,
        current.portals,
        current.readonly,
    )


class FollowServer(Request["Connection | None"]):
    """Take over the present portals of the server for an attachment.

    A lost session moves there; the disk of a live one over NVMe gets further paths.

    Input: the present connection. The publication has to be the same: a fenced host stays fenced.
    """

    on_pool = False
    kind = "follow-server"
    id: str

    async def gather(self, context: Context, operation_id: str) -> Connection | None:
        with context.read() as txn:
            attachment = txn.get(Attachment, self.id)
        if attachment is None:
            return None
        return (await context.servers.fetch(attachment.server, attachment.volume))[0]

    def plan(self, view: View, inputs: Connection | None) -> Plan:
        attachment = view.txn.get(Attachment, self.id)
        title, claims = f"follow the server of {self.id}", (f"attachment/{self.id}",)
        if attachment is None or inputs is None or not has_publication(attachment, inputs):
            return Plan(title=title, claims=claims)
        new = attachment.but(portals=inputs.portals, updated_at=view.now)
        return Plan(
            title=f"{title} to {', '.join(new.portals)}",
            claims=claims,
            actions=plans.up(
                plans.reconnection_steps(attachment, new, view.settings.lost_session_s)
            ),
            commit=(put(new),),
        )


def is_followed(attachment: Attachment, current: Connection) -> bool:
    """Tell whether an attachment has the present publication at former portals."""
    return has_publication(attachment, current) and attachment.portals != current.portals


def has_publication(attachment: Attachment, current: Connection) -> bool:
    """Tell whether an attachment is connected by the present publication."""
    same = (attachment.epoch, attachment.disk.target) == (current.epoch, current.target)
    return same and attachment.state != "ABSENT"


def find_leftover(machine: HostAdapters, disk: Disk) -> Leftover | None:
    """Return the session or node record that this host has of a disk's target, if any."""
    adapter = session_adapter(machine, disk.target)
    session = adapter.has_any_session(disk)
    owner = adapter.owner(disk.target)
    if owner is None:
        return None
    users = tuple(adapter.users(disk))
    return Leftover(
        owner=owner,
        users=users,
        lost=bool(users) and adapter.is_lost(disk),
        session=session,
    )
