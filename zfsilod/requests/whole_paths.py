"""Requests for a whole path in one operation: AttachVolume goes up, DetachVolume down.

They join the plans of the single requests. When one action fails, the whole path is rolled back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from zfsilod.engine.plans import CLIENT_STATES
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.records import Attachment
from zfsilod.requests import paths
from zfsilod.requests.attach import MountAt, Stage
from zfsilod.requests.connect import Connect, ConnectInputs
from zfsilod.requests.detach import Detach, Disconnect, UnmountFrom, Unstage, check_unmounted
from zfsilod.requests.request import Plan, Request, View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.model.identity import Caller
    from zfsilod.model.records import Action
    from zfsilod.model.words import Restore, Transport
    from zfsilod.requests.context import Context
    from zfsilod.requests.detach import SessionState

HIGHER = CLIENT_STATES[1:]  # in the order of the way up
LOWER = CLIENT_STATES[2::-1]  # in the order of the way down


class AttachVolume(Request[ConnectInputs]):
    """Connect a volume of a server, stage it, and mount it at a path, up to a state.

    What is so already is left as it is.
    """

    kind = "attach"
    on_pool = False
    id: str
    server: str
    volume: str
    path: str = ""  # where it is mounted, for the state MOUNTED
    state: str = "MOUNTED"  # or CONNECTED, STAGED
    restore: Restore = "NEVER"
    publish_if_needed: bool = False
    transport: Transport | Literal[""] = ""  # as in Connect
    tls: bool = False  # as in Connect
    epoch: int = 0  # 0: any
    staging_path: str = ""
    fs_type: str = ""
    mount_options: tuple[str, ...] = ()
    readonly: bool = False  # of the staging and of the mount
    differs: bool = False  # see Connect
    staging_root: str = ""  # folders that the paths may not leave: requests/paths.py
    root: str = ""

    async def resolved(self, context: Context, caller: Caller) -> AttachVolume:
        _check_state(self.state, HIGHER)
        if self.state == "MOUNTED" and not self.path:
            raise InvalidArgument("a mounted volume needs a path", reason="BAD_PATH")
        new = self.but(differs=(await self._connect.resolved(context, caller)).differs)
        if self.state != "CONNECTED":
            path, root = await paths.resolve(context, caller, self.id, self.staging_path)
            new = new.but(staging_path=path, staging_root=root)
        if self.state == "MOUNTED":
            path, root = await paths.resolve(context, caller, self.id, self.path)
            new = new.but(path=path, root=root)
        return new

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        facts = [part.satisfied(view) for part in self._parts]
        return None if None in facts else facts[-1]  # each has those of the states below it

    def authorise(self, view: View) -> None:
        for part in self._parts:
            part.authorise(view)

    async def gather(self, context: Context, operation_id: str) -> ConnectInputs:
        return await self._connect.gather(context, operation_id)

    def prerequisites(self, view: View, inputs: ConnectInputs) -> Sequence[Request[object]]:
        return self._connect.prerequisites(view, inputs)

    def plan(self, view: View, inputs: ConnectInputs) -> Plan:
        parts = [self._connect.plan(view, inputs)]
        if self.state != "CONNECTED":
            served = None if self.readonly else inputs.fetched.connection
            parts.append(self._stage.plan_for(parts[-1].leaves(Attachment), view, served))
        if self.state == "MOUNTED":
            parts.append(self._mount.plan_for(parts[-1].leaves(Attachment), view))
        where = f" at {self.path}" if self.state == "MOUNTED" else ""
        title = f"attach {self.volume} of {self.server}: {self.state.lower()}{where}"
        return Plan.joined(title, parts)

    def preview(self) -> AttachVolume:
        return self.but(publish_if_needed=False)

    @property
    def _parts(self) -> tuple[Connect | Stage | MountAt, ...]:
        parts = (self._connect, self._stage, self._mount)
        return parts[: 1 + HIGHER.index(self.state)]

    @property
    def _connect(self) -> Connect:
        return Connect(
            id=self.id,
            server=self.server,
            volume=self.volume,
            restore=self.restore,
            publish_if_needed=self.publish_if_needed,
            transport=self.transport,
            tls=self.tls,
            epoch=self.epoch,
            differs=self.differs,
        )

    @property
    def _stage(self) -> Stage:
        return Stage(
            id=self.id,
            path=self.staging_path,
            fs_type=self.fs_type,
            mount_options=self.mount_options,
            readonly=self.readonly,
            root=self.staging_root,
        )

    @property
    def _mount(self) -> MountAt:
        return MountAt(id=self.id, path=self.path, readonly=self.readonly, root=self.root)


class DetachVolume(Detach):
    """Unmount a volume from all paths, unstage it, and disconnect it, down to a state.

    `unmounted`: refuse it while it is mounted; `path`: refuse it when this is not the staging path.
    """

    kind = "detach"
    state: str = "ABSENT"  # or CONNECTED, STAGED
    unmounted: bool = False
    path: str = ""

    async def resolved(self, context: Context, caller: Caller) -> DetachVolume:
        _check_state(self.state, LOWER)
        return self.but(path=await paths.recorded(context, self.id, self.path))

    def plan_for(self, attachment: Attachment | None, view: View, session: SessionState) -> Plan:
        title = f"detach {self.id}" + ("" if self.state == "ABSENT" else f": {self.state.lower()}")
        if attachment is None:
            return Plan(title=title, claims=(f"attachment/{self.id}",))
        if self.unmounted:
            check_unmounted(attachment)
        forced = self.force or session == "LOST"
        parts: list[Detach] = [
            UnmountFrom(id=self.id, force=forced),
            Unstage(id=self.id, path=self.path, force=forced),
            Disconnect(id=self.id, force=forced),
        ]
        parts = parts[: 1 + LOWER.index(self.state)]
        if forced:
            parts = parts[-1:]  # the last one drops the session before the mounts
        joined: list[Plan] = []
        for part in parts:
            joined.append(part.plan_for(attachment, view, session))
            attachment = joined[-1].leaves(Attachment, attachment)
        return Plan.joined(title, joined)


def _check_state(state: str, states: tuple[str, ...]) -> None:
    """Raise InvalidArgument for a state that is not one of these."""
    if state not in states:
        raise InvalidArgument(
            f"invalid state {state[:40]!r}: expected {' or '.join(states)}", reason="BAD_ENUM"
        )
