"""The requests by which a consumer lets go of a volume: unmount, unstage, disconnect.

A session that is lost turns the order round: first the session is dropped, so that what hangs
fails, then the mounts are taken away, from whoever is at work there. `force` asks for that order
whatever the session is like, and from any state. Where I/O hangs though the session stands, the
worker sees it before its first move, and drops the session by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.engine.steps.mount import LazyUnmounted
from zfsilod.engine.steps.session import SessionDropped
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.records import Attachment, PendingRelease
from zfsilod.model.validation import check_id
from zfsilod.requests.request import Plan, Request, View, drop, drop_secret, put

if TYPE_CHECKING:
    from zfsilod.model.host_facts import Disk
    from zfsilod.model.records import Change
    from zfsilod.storage.store import Transaction


class Descent(Request):
    """A way down of an attachment."""

    id: str
    force: bool = False

    def attachment(self, txn: Transaction) -> Attachment | None:
        """Return what it is about, or None: then there is nothing to let go of."""
        return txn.get(Attachment, check_id(self.id, "volume id"))

    def turned(self, seen: object) -> bool:
        """Tell whether the order is turned round; `seen`: whether the session is lost."""
        return self.force or seen is True


class UnmountFrom(Descent):
    """Take a volume away from one path, or ("") from all."""

    kind = "unmount"
    path: str = ""

    def plan(self, view: View, seen: object) -> Plan:
        found = self.attachment(view.txn)
        mounts = found.mounts if found else ()
        gone = [each for each in mounts if self.path in ("", each.path)]
        title = f"unmount {self.id} from {self.path or 'all paths'}"
        claims = (f"attachment/{self.id}", *(f"path/{each.path}" for each in gone))
        if found is None or not gone:
            return Plan(title=title, claims=claims)
        if self.turned(seen):
            actions = list(plans.forced_unmount(found, gone))
        else:
            actions = [
                action for mount in reversed(gone) for action in plans.unmounting(found, mount)
            ]
        left = tuple(each for each in mounts if each not in gone)
        new = found.but(mounts=left, state="MOUNTED" if left else "STAGED", updated_at=view.now)
        return Plan(title=title, claims=claims, actions=tuple(actions), commit=(put(new),))


class Unstage(Descent):
    """Unmount the filesystem from the staging path."""

    kind = "unstage"
    path: str = ""

    def plan(self, view: View, seen: object) -> Plan:
        found = self.attachment(view.txn)
        claims = (f"attachment/{self.id}",)
        title = f"unstage {self.id}"
        if found is None or found.state == "CONNECTED":
            return Plan(title=title, claims=claims)
        if found.mounts and not self.force:
            raise FailedPrecondition(
                f"{self.id} is mounted at {', '.join(each.path for each in found.mounts)}: "
                "unmount it first",
                reason="MOUNTED",
                volume=self.id,
            )
        if self.path not in ("", found.staging_path):
            raise FailedPrecondition(
                f"{self.id} is staged at {found.staging_path}, not at {self.path}",
                reason="OTHER_PATH",
                volume=self.id,
            )
        turned = self.turned(seen)
        return Plan(
            title=title,
            claims=(*claims, *_paths(found)),
            actions=plans.forced_detach_path(found) if turned else plans.unstaging(found),
            commit=(put(_connected(found, view)),),
        )


class Disconnect(Descent):
    """Log out, and release what this host published to itself.

    `epoch`, `boot_id`: only the attachment to that publication, or of that boot, and not one that
    was made meanwhile.
    """

    kind = "disconnect"
    epoch: int = 0
    boot_id: str = ""

    def plan(self, view: View, seen: object) -> Plan:
        found = self.attachment(view.txn)
        claims = (f"attachment/{self.id}",)
        title = f"disconnect {self.id}"
        if found is None or self._is_other(found):
            return Plan(title=title, claims=claims)
        if found.state != "CONNECTED" and not self.force:
            raise FailedPrecondition(
                f"{self.id} is {found.state.lower()}: unmount and unstage it first",
                reason=found.state,
                volume=self.id,
            )
        session = plans.connection_steps(found)
        actions = plans.detach_path(found, session)
        if self.turned(seen):
            actions = (*plans.forced_detach_path(found), *plans.down(session))
        return Plan(
            title=title,
            claims=(*claims, *_paths(found)),
            actions=actions,
            commit=(drop(found), drop_secret(found.secret), *_pending(found)),
        )

    def _is_other(self, found: Attachment) -> bool:
        return self.epoch not in (0, found.epoch) or self.boot_id not in ("", found.boot_id)


class Clear(Request):
    """End a session that no record knows, and take away what is mounted of its disk."""

    kind = "clear"
    id: str
    disk: Disk
    paths: tuple[str, ...]

    def plan(self, view: View, seen: object) -> Plan:
        title = f"end an old session of {self.id}"
        target = self.disk.target
        claims = (
            f"attachment/{self.id}",
            f"target/{target}",
            *(f"path/{each}" for each in self.paths),
        )
        if any(each.disk.target == target for each in view.txn.scan(Attachment)):
            return Plan(title=title, claims=claims)  # what was seen was being connected
        detached = [LazyUnmounted(disk=self.disk, path=each) for each in reversed(self.paths)]
        return Plan(
            title=title,
            claims=claims,
            actions=plans.up([SessionDropped(disk=self.disk), *detached]),
        )


def _paths(found: Attachment) -> tuple[str, ...]:
    return tuple(f"path/{each}" for each in found.paths)


def _connected(found: Attachment, view: View) -> Attachment:
    return found.but(
        state="CONNECTED",
        staging_path="",
        made_staging_path=False,
        mount_options=(),
        stage_readonly=False,
        mounts=(),
        updated_at=view.now,
    )


def _pending(found: Attachment) -> tuple[Change, ...]:
    """Return what the server still has to be told: that its publication is no longer needed."""
    if not found.published_here:
        return ()
    return (put(PendingRelease(id=found.published_here, server=found.server, volume=found.volume)),)
