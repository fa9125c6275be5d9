"""Authorization of D-Bus callers by polkit.

Root needs no authorization. For all other users polkit is asked at every call, with a deadline;
without polkit they are refused. Calls of one connection at the same moment share the question: a
page of Cockpit reads many objects at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any

from dbus_next import DBusError, ErrorType, Message, MessageFlag, MessageType, Variant

from zfsilod.model.errors import Unavailable
from zfsilod.model.identity import Caller
from zfsilod.security.authorization import READ
from zfsilod.systemd.bus_users import BUS_PATH, BusUsers
from zfsilod.systemd.messages import BUS

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbus_next.aio import MessageBus

MAX_CALLERS = 1024
BUS_DEADLINE_S = 5
POLKIT = "org.freedesktop.PolicyKit1"
POLKIT_DEADLINE_S = 5
INTERACTIVE_DEADLINE_S = 120  # when polkit may ask the user for a password
MAX_CHECKS = 16  # concurrent authorization checks of one user; further ones wait
MAX_WAITING = 64  # of one user
INTERACTIVE = 1  # CheckAuthorizationFlags
NO_POLKIT = ("ServiceUnknown", "NameHasNoOwner", "Spawn.")
NEEDS_PASSWORD = f"{BUS}.Error.InteractiveAuthorizationRequired"
# Only signals of names that lose their owner.
NAME_LOST = (
    f"type='signal',sender='{BUS}',path='{BUS_PATH}',interface='{BUS}',"
    "member='NameOwnerChanged',arg2=''"
)


class Identities:
    """The uids of callers by unique bus name, and the authorization of their calls."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._users = BusUsers(bus)
        self.uids: OrderedDict[str, int] = OrderedDict()
        self.asked: dict[str, list[Callable[[int | None], None]]] = {}  # who waits, by sender
        self.checks: Counter[int] = Counter()  # that run or wait now, by uid
        self.turns: dict[int, asyncio.Semaphore] = {}  # for them, by uid
        self.shared: dict[tuple[str, str, bool], asyncio.Task[None]] = {}
        self._count = 0

    async def start(self) -> None:
        """Subscribe to signals of names that lose their owner."""
        subscription = Message(
            destination=BUS,
            path=BUS_PATH,
            interface=BUS,
            member="AddMatch",
            signature="s",
            body=[NAME_LOST],
        )
        try:
            async with asyncio.timeout(BUS_DEADLINE_S):
                reply = await self._bus.call(subscription)
        except TimeoutError:
            raise Unavailable(f"the bus did not answer in {BUS_DEADLINE_S} s") from None
        if reply.message_type is MessageType.ERROR:
            raise DBusError(ErrorType.ACCESS_DENIED, f"the bus refused AddMatch: {reply.body}")

    def forget(self, sender: str) -> None:
        """Forget a caller that disconnected."""
        self.uids.pop(sender, None)

    def ask(self, sender: str, told: Callable[[int | None], None]) -> None:
        """Ask for the uid behind a bus name; `told` gets None when the sender is gone."""
        waiting = self.asked.get(sender)
        if waiting is not None:
            waiting.append(told)
            return
        self.asked[sender] = [told]
        self._users.ask(sender, partial(self._told, sender))

    def _told(self, sender: str, uid: int | None) -> None:
        if uid is not None:
            self.uids[sender] = uid
            if len(self.uids) > MAX_CALLERS:
                self.uids.popitem(last=False)
        for told in self.asked.pop(sender):
            told(uid)

    async def uid_of(self, sender: str) -> int:
        """Return the uid behind a bus name. Raises AccessDenied when it is gone."""
        if sender in self.uids:
            return self.uids[sender]
        answer: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self.ask(sender, lambda uid: None if answer.done() else answer.set_result(uid))
        try:
            async with asyncio.timeout(BUS_DEADLINE_S):
                uid = await answer
        except TimeoutError:
            raise Unavailable(f"the bus did not answer in {BUS_DEADLINE_S} s") from None
        if uid is None:
            raise DBusError(ErrorType.ACCESS_DENIED, f"the caller {sender} is gone")
        return uid

    async def authorize(self, sender: str, action: str, *, interactive: bool = False) -> Caller:
        """Return the caller behind a bus name if it has the action, else raise AccessDenied."""
        uid = await self.uid_of(sender)
        if uid != 0:
            if interactive and action != READ:  # a password that is typed is for one change
                await self._check_in_turn(sender, uid, action, interactive=True)
            else:
                await self._share_check(sender, uid, action, interactive=interactive)
        return Caller(role="admin", subject=f"uid {uid}", origin="dbus", local=True)

    def close(self) -> None:
        """End checks that no call waits for any more."""
        for task in self.shared.values():
            task.cancel()

    async def _share_check(self, sender: str, uid: int, action: str, *, interactive: bool) -> None:
        """Ask polkit once for all calls of a connection that need an action at the same time."""
        key = sender, action, interactive
        task = self.shared.get(key)
        if task is None:
            check = self._check_in_turn(sender, uid, action, interactive=interactive)
            task = self.shared[key] = asyncio.create_task(check)
            task.add_done_callback(partial(self._checked, key))
        await asyncio.shield(task)  # a call that is cancelled does not end the check of the others

    def _checked(self, key: tuple[str, str, bool], task: asyncio.Task[None]) -> None:
        del self.shared[key]
        if not task.cancelled():
            task.exception()  # all its calls may be cancelled

    async def _check_in_turn(
        self, sender: str, uid: int, action: str, *, interactive: bool
    ) -> None:
        """Check when fewer than MAX_CHECKS of the user run. Raises LimitsExceeded."""
        if self.checks[uid] >= MAX_CHECKS + MAX_WAITING:
            text = f"{self.checks[uid]} authorization checks of uid {uid} are running: retry later"
            raise DBusError(ErrorType.LIMITS_EXCEEDED, text)
        self.checks[uid] += 1
        turn = self.turns.setdefault(uid, asyncio.Semaphore(MAX_CHECKS))
        try:
            async with turn:
                await self.check_authorization(sender, uid, action, interactive=interactive)
        finally:
            self.checks[uid] -= 1
            if not self.checks[uid]:
                del self.checks[uid], self.turns[uid]

    async def check_authorization(
        self, sender: str, uid: int, action: str, *, interactive: bool
    ) -> None:
        self._count += 1
        cancellation_id = f"zfsilo-{self._count}"
        subject = ["system-bus-name", {"name": Variant("s", sender)}]
        flags = INTERACTIVE if interactive else 0
        try:
            async with asyncio.timeout(
                INTERACTIVE_DEADLINE_S if interactive else POLKIT_DEADLINE_S
            ):
                reply = await self._bus.call(
                    _to_polkit(
                        "CheckAuthorization",
                        "(sa{sv})sa{ss}us",
                        [subject, action, {}, flags, cancellation_id],
                    )
                )
        except TimeoutError:
            cancel = _to_polkit("CancelCheckAuthorization", "s", [cancellation_id], reply=False)
            self._bus.send(cancel)
            raise Unavailable("polkit did not answer in time; nothing was changed") from None
        if reply.message_type is MessageType.ERROR:
            error = reply.error_name or ""
            missing = any(part in error for part in NO_POLKIT)
            reason = "polkit does not run" if missing else f"polkit: {error}"
            text = f"uid {uid} may not use {action}, only root: {reason}"
            raise DBusError(ErrorType.ACCESS_DENIED, text)
        is_authorized, is_challenge, _details = reply.body[0]
        if not is_authorized:
            if is_challenge:
                raise DBusError(NEEDS_PASSWORD, f"uid {uid} needs a password for {action}")
            raise DBusError(ErrorType.ACCESS_DENIED, f"polkit denies {action} to uid {uid}")

    def known_uid(self, sender: str) -> str:
        """Return the uid behind a bus name if it is known, for the audit."""
        return str(self.uids.get(sender, "unknown"))


def _to_polkit(member: str, signature: str, body: list[Any], *, reply: bool = True) -> Message:
    return Message(
        destination=POLKIT,
        path=f"/{POLKIT.replace('.', '/')}/Authority",
        interface=f"{POLKIT}.Authority",
        member=member,
        signature=signature,
        body=body,
        flags=MessageFlag.NONE if reply else MessageFlag.NO_REPLY_EXPECTED,
    )
