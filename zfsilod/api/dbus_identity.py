"""Who calls over D-Bus, and whether they may: `authorize` is the place that decides."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from dbus_next import DBusError, ErrorType, Message, MessageType

from zfsilod.errors import Unavailable

if TYPE_CHECKING:
    from dbus_next.aio import MessageBus

BUS = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"
MAX_CALLERS = 1024
BUS_DEADLINE_S = 5
# Only names that vanish: all other traffic of the bus is none of our business.
VANISHED = (
    f"type='signal',sender='{BUS}',path='{BUS_PATH}',interface='{BUS}',"
    "member='NameOwnerChanged',arg2=''"
)


class Identities:
    """The users behind the unique names that called, as the bus tells them."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._uids: OrderedDict[str, int] = OrderedDict()

    async def start(self) -> None:
        """Ask the bus to tell which names vanish."""
        await self._ask("AddMatch", VANISHED)

    def heed(self, signal: Message) -> None:
        """Forget a caller whose name vanished."""
        if signal.sender == BUS and signal.member == "NameOwnerChanged":
            self._uids.pop(signal.body[0], None)

    async def authorize(self, sender: str, action: str) -> str:
        """Return who is behind a name, if they may do this; else raise AccessDenied."""
        uid = await self._uid(sender)
        if uid != 0:
            text = f"{action} is for root only, not for uid {uid}"
            raise DBusError(ErrorType.ACCESS_DENIED, text)
        return f"uid {uid} (dbus)"

    async def _uid(self, sender: str) -> int:
        if sender not in self._uids:
            (uid,) = await self._ask("GetConnectionUnixUser", sender)
            self._uids[sender] = uid
            if len(self._uids) > MAX_CALLERS:
                self._uids.popitem(last=False)
            return int(uid)
        return self._uids[sender]

    async def _ask(self, member: str, argument: str) -> list[int]:
        question = Message(
            destination=BUS, path=BUS_PATH, interface=BUS, member=member,
            signature="s", body=[argument],
        )  # fmt: skip
        try:
            async with asyncio.timeout(BUS_DEADLINE_S):
                reply = await self._bus.call(question)
        except TimeoutError:
            raise Unavailable(f"the bus did not answer {member} in {BUS_DEADLINE_S} s") from None
        if reply.message_type is MessageType.ERROR:
            raise DBusError(ErrorType.ACCESS_DENIED, f"the bus refused {member}: {reply.body}")
        answer: list[int] = reply.body
        return answer
