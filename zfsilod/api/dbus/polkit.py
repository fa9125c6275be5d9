"""Who calls over D-Bus, and whether they may: `authorize` is the place that decides.

Root may. About everybody else polkit is asked, each time and with a deadline; where there is no
polkit, only root may.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

from dbus_next import DBusError, ErrorType, Message, MessageFlag, MessageType, Variant

from zfsilod.model.errors import Unavailable
from zfsilod.model.identity import Caller

if TYPE_CHECKING:
    from dbus_next.aio import MessageBus

BUS = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"
MAX_CALLERS = 1024
BUS_DEADLINE_S = 5
POLKIT = "org.freedesktop.PolicyKit1"
POLKIT_DEADLINE_S = 5
ASKING_DEADLINE_S = 120  # when polkit may ask the user for a password
MAX_ASKED = 16  # questions to polkit about one user at a time
INTERACTIVE = 1  # CheckAuthorizationFlags
NO_POLKIT = ("ServiceUnknown", "NameHasNoOwner", "Spawn.")
NEEDS_PASSWORD = f"{BUS}.Error.InteractiveAuthorizationRequired"
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
        self._asked: Counter[int] = Counter()
        self._count = 0

    async def start(self) -> None:
        """Ask the bus to tell which names vanish."""
        await self._ask("AddMatch", VANISHED)

    def heed(self, signal: Message) -> None:
        """Forget a caller whose name vanished."""
        if signal.sender == BUS and signal.member == "NameOwnerChanged":
            self._uids.pop(signal.body[0], None)

    async def authorize(self, sender: str, action: str, *, interactive: bool = False) -> Caller:
        """Return who is behind a name, if they may do this; else raise AccessDenied."""
        uid = await self._uid(sender)
        if uid != 0:
            if self._asked[uid] >= MAX_ASKED:
                text = f"polkit is being asked {MAX_ASKED} questions about uid {uid}: wait for one"
                raise DBusError(ErrorType.LIMITS_EXCEEDED, text)
            self._asked[uid] += 1
            try:
                await self._ask_polkit(sender, uid, action, interactive=interactive)
            finally:
                self._asked -= Counter([uid])  # forgets who is at zero
        return Caller(role="admin", subject=f"uid {uid}", origin="dbus", local=True)

    async def _ask_polkit(self, sender: str, uid: int, action: str, *, interactive: bool) -> None:
        self._count += 1
        asked = f"zfsilo-{self._count}"
        subject = ["system-bus-name", {"name": Variant("s", sender)}]
        flags = INTERACTIVE if interactive else 0
        try:
            async with asyncio.timeout(ASKING_DEADLINE_S if interactive else POLKIT_DEADLINE_S):
                reply = await self._bus.call(
                    _to_polkit(
                        "CheckAuthorization",
                        "(sa{sv})sa{ss}us",
                        [subject, action, {}, flags, asked],
                    )
                )
        except TimeoutError:
            self._bus.send(_to_polkit("CancelCheckAuthorization", "s", [asked], answered=False))
            raise Unavailable("polkit did not answer in time: nothing was done") from None
        if reply.message_type is MessageType.ERROR:
            why = "there is no polkit" if _is_missing(reply) else f"polkit says {reply.error_name}"
            text = f"{action} is for root only, not for uid {uid}: {why}"
            raise DBusError(ErrorType.ACCESS_DENIED, text)
        is_authorized, is_challenge, _details = reply.body[0]
        if not is_authorized:
            text = f"{action} is not for uid {uid}"
            if is_challenge:
                raise DBusError(NEEDS_PASSWORD, f"{text} without a password")
            raise DBusError(ErrorType.ACCESS_DENIED, f"{text}, says polkit")

    def known_uid(self, sender: str) -> str:
        """Return the user behind a name as far as it is known, for the audit."""
        return str(self._uids.get(sender, "unknown"))

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
            destination=BUS,
            path=BUS_PATH,
            interface=BUS,
            member=member,
            signature="s",
            body=[argument],
        )
        try:
            async with asyncio.timeout(BUS_DEADLINE_S):
                reply = await self._bus.call(question)
        except TimeoutError:
            raise Unavailable(f"the bus did not answer {member} in {BUS_DEADLINE_S} s") from None
        if reply.message_type is MessageType.ERROR:
            raise DBusError(ErrorType.ACCESS_DENIED, f"the bus refused {member}: {reply.body}")
        answer: list[int] = reply.body
        return answer


def _to_polkit(member: str, signature: str, body: list[Any], *, answered: bool = True) -> Message:
    return Message(
        destination=POLKIT,
        path=f"/{POLKIT.replace('.', '/')}/Authority",
        interface=f"{POLKIT}.Authority",
        member=member,
        signature=signature,
        body=body,
        flags=MessageFlag.NONE if answered else MessageFlag.NO_REPLY_EXPECTED,
    )


def _is_missing(reply: Message) -> bool:
    return any(each in (reply.error_name or "") for each in NO_POLKIT)
