"""Requests by which a client releases a volume: unmount, unstage, disconnect.

A lost session reverses the order: the session is dropped first, so that pending I/O fails, then the
mounts are removed, even where processes use them. `force` asks for that order from any state. Where
I/O hangs although the session exists, the worker notices before its first action and drops the
session itself.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from zfsilod.engine import plans
from zfsilod.engine.steps.mount import LazyUnmounted
from zfsilod.engine.steps.session import LossWait, SessionDropped
from zfsilod.engine.steps.users import DiskUnused, UsersNamed
from zfsilod.host.places import ANYWHERE
from zfsilod.host.transports import session_adapter
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.records import Attachment, PendingRelease
from zfsilod.model.validation import check_id
from zfsilod.requests import paths
from zfsilod.requests.request import Plan, Request, View, drop, drop_secret, put
from zfsilod.requests.rights import check_attachment, check_leftover
from zfsilod.requests.volumes import check_volume_etag

if TYPE_CHECKING:
    from zfsilod.model.host_facts import Disk
    from zfsilod.model.identity import Caller
    from zfsilod.model.records import Operation
    from zfsilod.requests.context import Context
    from zfsilod.requests.request import Preemption
    from zfsilod.storage.transaction import Transaction

ATTACHING = ("attach", "connect", "stage", "mount", "grow")  # kinds that a detach cancels
PROBE_AGAIN_S = 0.25


SessionState = Literal["USABLE", "LOST"]


class Detach(Request[SessionState]):
    """The base of requests that lower an attachment's state. Input: the state of its session."""

    descends = True
    on_pool = False
    id: str
    force: bool = False
    etag: str = ""

    def attachment(self, txn: Transaction) -> Attachment | None:
        """Return the attachment; None: it is released already."""
        return txn.get(Attachment, check_id(self.id, "volume id"))

    def authorise(self, view: View) -> None:
        check_attachment(view, self.id)

    def plan(self, view: View, inputs: SessionState) -> Plan:
        check_volume_etag(view.txn, self.id, self.etag)
        return self.plan_for(self.attachment(view.txn), view, inputs)

    def plan_for(self, attachment: Attachment | None, view: View, session: SessionState) -> Plan:
        """Return the plan for an attachment as it is, or as an earlier plan leaves it."""
        raise AssertionError(f"{self.kind} has no plan")

    async def gather(self, context: Context, operation_id: str) -> SessionState:
        """Return LOST for a session that does not come back within the recovery time."""
        with context.read() as txn:
            attachment = self.attachment(txn)
        if attachment is None or attachment.state == "ABSENT":
            return "USABLE"
        disk = attachment.disk
        adapter = session_adapter(context.machine, disk.target)
        until = time.monotonic() + context.session_recovery_s
        while await context.look(lambda: adapter.is_lost(disk)):
            known = await context.look(lambda: adapter.has_any_session(disk))
            if not known or time.monotonic() > until:
                return "LOST"
            await context.pause(PROBE_AGAIN_S)
        return "USABLE"

    def preempts(self, owner: Operation) -> tuple[Preemption, ...]:
        cancel: tuple[Preemption, ...] = ("CANCEL",) if owner.kind in ATTACHING else ()
        abandon: tuple[Preemption, ...] = ("ABANDON",) if self.force else ()
        return (*cancel, "RETRY_ROLLBACK", *abandon)


class UnmountFrom(Detach):
    """Unmount a volume from one path, or ("") from all."""

    kind = "unmount"
    path: str = ""

    async def resolved(self, context: Context, caller: Caller) -> UnmountFrom:
        return self.but(path=await paths.recorded(context, self.id, self.path))

    def plan_for(self, attachment: Attachment | None, view: View, session: SessionState) -> Plan:
        mounts = attachment.mounts if attachment else ()
        removed = [mount for mount in mounts if self.path in ("", mount.path)]
        title = f"unmount {self.id} from {self.path or 'all paths'}"
        claims = (f"attachment/{self.id}", *(f"path/{mount.path}" for mount in removed))
        if attachment is None or not removed:
            return Plan(title=title, claims=claims)
        if session == "LOST" or self.force:
            actions = plans.forced_unmount(attachment, removed)
        else:
            actions = tuple(
                action
                for mount in reversed(removed)
                for action in plans.unmounting(attachment, mount)
            )
        left = tuple(mount for mount in mounts if mount not in removed)
        state = "MOUNTED" if left else "STAGED"
        return Plan(
            title=title,
            claims=claims,
            actions=actions,
            commit=(put(attachment.but(mounts=left, state=state, updated_at=view.now)),),
        )


class Unstage(Detach):
    """Unmount the filesystem from the staging path."""

    kind = "unstage"
    path: str = ""

    async def resolved(self, context: Context, caller: Caller) -> Unstage:
        return self.but(path=await paths.recorded(context, self.id, self.path))

    def plan_for(self, attachment: Attachment | None, view: View, session: SessionState) -> Plan:
        claims = (f"attachment/{self.id}",)
        title = f"unstage {self.id}"
        if attachment is None or attachment.state == "CONNECTED":
            return Plan(title=title, claims=claims)
        if not self.force:
            check_unmounted(attachment)
        if self.path not in ("", attachment.staging_path):
            raise FailedPrecondition(
                f"{self.id} is staged at {attachment.staging_path}, not at {self.path}",
                reason="OTHER_PATH",
                volume=self.id,
            )
        reversed_order = session == "LOST" or self.force
        connected = attachment.but(
            state="CONNECTED",
            staging_path="",
            made_staging_path=False,
            mount_options=(),
            stage_readonly=False,
            mounts=(),
            updated_at=view.now,
        )
        return Plan(
            title=title,
            claims=(*claims, *_paths(attachment)),
            actions=plans.forced_detach_path(attachment)
            if reversed_order
            else plans.unstaging(attachment),
            commit=(put(connected),),
        )


class Disconnect(Detach):
    """Log out, and release what this host published to itself.

    `epoch`, `boot_id`: only the attachment of that epoch, or of that boot; a newer one stays.
    """

    kind = "disconnect"
    epoch: int = 0
    boot_id: str = ""

    def plan_for(self, attachment: Attachment | None, view: View, session: SessionState) -> Plan:
        claims = (f"attachment/{self.id}",)
        title = f"disconnect {self.id}"
        if attachment is None:
            return Plan(title=title, claims=claims)
        other_epoch = self.epoch not in (0, attachment.epoch)
        if other_epoch or self.boot_id not in ("", attachment.boot_id):
            return Plan(title=title, claims=claims)
        if attachment.state != "CONNECTED" and not self.force:
            raise FailedPrecondition(
                f"{self.id} is {attachment.state.lower()}: unmount and unstage it first",
                reason=attachment.state,
                volume=self.id,
            )
        steps = plans.disconnecting(attachment, view.settings.lost_session_s)
        unused = DiskUnused(disk=attachment.disk, paths=attachment.paths)
        actions = plans.detach_path(attachment, steps, [unused])
        if session == "LOST" or self.force:
            actions = (*plans.forced_detach_path(attachment), *plans.down(steps))
        commit = [drop(attachment), drop_secret(attachment.secret)]
        if attachment.published_here:
            release = PendingRelease(
                id=attachment.published_here, server=attachment.server, volume=attachment.volume
            )
            commit.append(put(release))
        return Plan(
            title=title,
            claims=(*claims, *_paths(attachment)),
            actions=actions,
            commit=tuple(commit),
        )


class EndSession(Request[None]):
    """End the session of a publication that its server has withdrawn: pending I/O fails at once.

    The record and the dead mounts stay: the volume is not this host's any more, as status says.
    """

    on_pool = False
    descends = True
    kind = "end-session"
    id: str
    epoch: int  # of the attachment; a later one stays

    def authorise(self, view: View) -> None:
        check_attachment(view, self.id)

    def plan(self, view: View, inputs: None) -> Plan:
        attachment = view.txn.get(Attachment, check_id(self.id, "volume id"))
        title, claims = f"end the withdrawn session of {self.id}", (f"attachment/{self.id}",)
        if attachment is None or attachment.epoch != self.epoch:
            return Plan(title=title, claims=claims)
        actions = plans.up([SessionDropped(disk=attachment.disk)])
        return Plan(title=title, claims=claims, actions=actions)


class EndWait(Request[SessionState]):
    """End the waiting for a lost session, for a shutdown of this host; the record stays.

    A session that is lost is dropped, so that pending I/O fails at once. That of one that is lost
    later fails after 5 s. Otherwise neither an unmount nor the kernel's last flush would end.
    Input: the state of the session.
    """

    on_pool = False
    descends = True
    kind = "end-wait"
    id: str

    def authorise(self, view: View) -> None:
        check_attachment(view, self.id)

    async def gather(self, context: Context, operation_id: str) -> SessionState:
        with context.read() as txn:
            attachment = txn.get(Attachment, check_id(self.id, "volume id"))
        if attachment is None:
            return "USABLE"
        disk = attachment.disk
        adapter = session_adapter(context.machine, disk.target)
        lost = await context.look(lambda: adapter.has_any_session(disk) and adapter.is_lost(disk))
        return "LOST" if lost else "USABLE"

    def plan(self, view: View, inputs: SessionState) -> Plan:
        attachment = view.txn.get(Attachment, self.id)
        title, claims = f"end the waiting of {self.id}", (f"attachment/{self.id}",)
        if attachment is None or attachment.state == "ABSENT":
            return Plan(title=title, claims=claims)
        wait = LossWait(disk=attachment.disk, seconds=view.settings.lost_session_s)
        dropped = plans.up([SessionDropped(disk=attachment.disk)])
        actions = dropped if inputs == "LOST" else plans.down([wait])
        return Plan(title=title, claims=claims, actions=actions)


class Clear(Request[None]):
    """End a session without a record, and unmount its disk."""

    descends = True
    kind = "clear"
    on_pool = False
    id: str
    disk: Disk
    paths: tuple[str, ...]

    def authorise(self, view: View) -> None:
        check_attachment(view, self.id)
        check_leftover(view, self.paths)

    def plan(self, view: View, inputs: None) -> Plan:
        title = f"end an old session of {self.id}"
        target = self.disk.target
        claims = (
            f"attachment/{self.id}",
            f"target/{target}",
            *(f"path/{path}" for path in self.paths),
        )
        if any(known.disk.target == target for known in view.txn.scan(Attachment)):
            return Plan(title=title, claims=claims)  # it was connected since the probe
        unmounted = [
            LazyUnmounted(disk=self.disk, path=path, root=ANYWHERE) for path in reversed(self.paths)
        ]
        # With paths it is a lost session, whose mounts are dead; else nothing used it a moment ago.
        first = UsersNamed if self.paths else DiskUnused
        return Plan(
            title=title,
            claims=claims,
            actions=plans.up(
                [
                    first(disk=self.disk, paths=self.paths),
                    SessionDropped(disk=self.disk),
                    *unmounted,
                ]
            ),
        )


def check_unmounted(attachment: Attachment) -> None:
    """Raise FailedPrecondition (MOUNTED) while a volume is mounted beside its staging path."""
    if attachment.mounts:
        paths = ", ".join(mount.path for mount in attachment.mounts)
        raise FailedPrecondition(
            f"{attachment.id} is mounted at {paths}: unmount it first",
            reason="MOUNTED",
            volume=attachment.id,
        )


def _paths(attachment: Attachment) -> tuple[str, ...]:
    return tuple(f"path/{path}" for path in attachment.paths)
