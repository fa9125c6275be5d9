"""The D-Bus front end: one handler for every message, led by the contract (dbus/org.zfsilo1.xml).

No object is exported to the library: a path is looked up in the store when it is asked for, so a
hundred thousand volumes cost nothing until somebody reads one.
"""

from __future__ import annotations

import asyncio
import logging
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbus_next import (
    DBusError,
    ErrorType,
    Message,
    MessageFlag,
    MessageType,
    NameFlag,
    RequestNameReply,
)

from zfsilod.api.dbus.contract import (
    INTROSPECTABLE,
    NAME,
    OBJECT_MANAGER,
    PEER,
    PROPERTIES,
    Method,
    interfaces,
    introspection,
    offered,
    split,
)
from zfsilod.api.dbus.methods import Methods
from zfsilod.api.dbus.objects import Objects, unknown
from zfsilod.api.dbus.polkit import Identities
from zfsilod.api.dbus.properties import clean
from zfsilod.api.dbus.signals import Signals
from zfsilod.model.errors import Internal, PermissionDenied, Unavailable, ZfsiloError
from zfsilod.model.identity import Caller
from zfsilod.security.authorization import READ
from zfsilod.systemd.bus import close_socket, connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbus_next.aio import MessageBus

    from zfsilod.model.records import Operation
    from zfsilod.service.service import Service

MAX_CALLS = 1024  # at work at once; more are refused
CLOSE_DEADLINE_S = 5
MACHINE_ID = Path("/etc/machine-id")

NOBODY = Caller(
    role="reader", subject="", origin=""
)  # of org.freedesktop.DBus.Peer, without rights

log = logging.getLogger(__name__)


async def serve(bus_address: str | None, service: Service, *, version: str) -> DbusFront:
    """Take the name org.zfsilo1 on a bus (None: the system bus) and serve it until `close`.

    Raises Unavailable without a bus or when the name is taken, and PermissionDenied when the policy
    of the bus keeps the name from us.
    """
    interfaces()  # a contract that is not installed shows now, not at the first call
    bus = await connect(bus_address)
    front = DbusFront(bus, service, version)
    try:
        await front.start()
    except BaseException:
        await front.close()
        raise
    return front


def translated(
    answer: Callable[[DbusFront, Message], Awaitable[Message]],
) -> Callable[[DbusFront, Message], Awaitable[Message]]:
    """Turn every error of an answer into a reply; the one place where D-Bus learns of errors."""

    @wraps(answer)
    async def safe(front: DbusFront, call: Message) -> Message:
        try:
            return await answer(front, call)
        except DBusError as error:
            return Message.new_error(call, error.type, clean(error.text))
        except ZfsiloError as error:
            return _error(call, error)
        except Exception:
            log.exception("D-Bus call %s.%s failed", call.interface, call.member)
            return _error(call, Internal("a defect of zfsilod; its journal tells more"))

    return safe


class DbusFront:
    """The service on one bus."""

    def __init__(self, bus: MessageBus, service: Service, version: str) -> None:
        self._bus = bus
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._identities = Identities(bus)
        self._objects = Objects(service, version)
        self._signals = Signals(self._objects, self._emit)
        self._methods = Methods(service, self._objects)
        self._calls: set[asyncio.Task[None]] = set()
        self._gone = self._loop.create_task(self._watch())

    async def start(self) -> None:
        """Listen to messages and operations, and take the name."""
        self._bus.add_message_handler(self._received)
        self._service.executor.listeners.append(self._announced)
        await self._identities.start()
        try:
            reply = await self._bus.request_name(NAME, NameFlag.DO_NOT_QUEUE)
        except DBusError as error:
            raise PermissionDenied(
                f"the bus refuses the name {NAME}: {error.text}; is its policy {NAME}.conf "
                "installed, and does zfsilod run as root?"
            ) from error
        if reply is not RequestNameReply.PRIMARY_OWNER:
            raise Unavailable(f"the bus name {NAME} is taken: another zfsilod runs")

    async def closed(self) -> None:
        """Return when the connection has ended: by `close`, or because the bus went away."""
        await asyncio.wait([self._gone])

    async def close(self) -> None:
        """Let the calls at work end, and leave the bus."""
        if self._announced in self._service.executor.listeners:
            self._service.executor.listeners.remove(self._announced)
        if self._calls:
            await asyncio.wait(self._calls, timeout=CLOSE_DEADLINE_S)
        for call in self._calls:
            call.cancel()
        if self._bus.connected:
            self._bus.disconnect()
        await self.closed()

    async def _watch(self) -> None:
        """Wait for the end of the connection, and say why it ended, if we did not end it."""
        end = self._loop.create_task(self._bus.wait_for_disconnect())
        await asyncio.wait([end])
        if end.exception():
            log.error("the connection to the bus is gone: %r", end.exception())
        close_socket(self._bus)

    # Calls

    def _received(self, message: Message) -> bool:
        """Take a message; True keeps the library's own answers away from it."""
        if message.message_type is MessageType.SIGNAL:
            self._identities.heed(message)
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        if len(self._calls) >= MAX_CALLS:
            text = f"{MAX_CALLS} calls are at work: wait for one"
            self._send(Message.new_error(message, ErrorType.LIMITS_EXCEEDED, text))
            return True
        task = self._loop.create_task(self._serve(message))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return True

    async def _serve(self, call: Message) -> None:
        reply = await self._answer(call)
        if not call.flags & MessageFlag.NO_REPLY_EXPECTED:
            self._send(reply)

    @translated
    async def _answer(self, call: Message) -> Message:
        method = resolve(call)
        try:
            return await self._admitted(call, method)
        except (DBusError, ZfsiloError) as error:
            if method.action != READ and method.interface.startswith(NAME):
                self._note_refused(call, method, error)
            raise

    async def _admitted(self, call: Message, method: Method) -> Message:
        caller = NOBODY
        if method.interface != PEER:  # that only tells that we are there
            caller = await self._identities.authorize(
                call.sender,
                method.action,
                interactive=bool(call.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION),
            )
        body = await self._do(method, call, caller)
        reply = Message.new_method_return(call, method.answers, body)
        reply.serial = self._bus.next_serial()
        # Here, so that a value of the wrong type is an error of this call. All objects take a
        # second, which the event loop has not.
        large = method.interface == OBJECT_MANAGER
        raw = await asyncio.to_thread(reply._marshall) if large else reply._marshall()
        reply._marshall = lambda **_options: raw
        return reply

    def _note_refused(self, call: Message, method: Method, error: DBusError | ZfsiloError) -> None:
        uid = self._identities.known_uid(call.sender)
        if isinstance(error, DBusError):
            error = PermissionDenied(error.text, reason=error.type.rpartition(".")[2].upper())
        self._service.audit.refused(f"uid {uid} (dbus)", method.name, call.path, error)

    async def _do(self, method: Method, call: Message, caller: Caller) -> list[Any]:
        if method.interface == PEER:
            return [MACHINE_ID.read_text().strip()] if method.answers else []
        if method.interface == INTROSPECTABLE:
            return [await self._introspect(call.path)]
        if method.interface == PROPERTIES:
            return self._property(call.path, method.name, *call.body)
        if method.interface == OBJECT_MANAGER:
            return [await asyncio.to_thread(self._all)]
        own = split(call.path)
        arguments = [*(own[1:] if own else ()), *call.body]
        body = await self._methods.call(f"{method.interface}.{method.name}", arguments, caller)
        return [clean(value) for value in body]

    async def _introspect(self, path: str) -> str:
        if split(path):
            self._objects.need(path)
        children = await asyncio.to_thread(self._objects.children, path)
        return introspection(offered(path), children)

    def _property(self, path: str, method: str, interface: str, *arguments: Any) -> list[Any]:
        found = self._objects.need(path)
        ours = interface in ("", found.interface)
        if not ours and interface not in offered(path):
            raise DBusError(ErrorType.UNKNOWN_INTERFACE, f"{path} has no interface {interface}")
        if method == "GetAll":
            return [found.all() if ours else {}]
        name = arguments[0]
        if not ours or name not in interfaces()[found.interface].properties:
            text = f"{path} has no property {interface}.{name}"
            raise DBusError(ErrorType.UNKNOWN_PROPERTY, text)
        if method == "Set":
            raise DBusError(ErrorType.PROPERTY_READ_ONLY, f"{name} can only be read")
        return [found.get(name)]

    def _all(self) -> dict[str, dict[str, dict[str, Any]]]:
        return {each.path: {each.interface: each.all()} for each in self._objects.managed()}

    # Signals

    def _announced(self, operation: Operation) -> None:
        """Tell of an operation soon: after the reply to the call that began it."""
        self._loop.call_soon(self._signals.changed, operation)

    def _emit(
        self, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> None:
        self._send(Message.new_signal(path, interface, member, signature, clean(body)))

    def _send(self, message: Message) -> None:
        if self._bus.connected:
            # Whether the bus went away meanwhile is told once, by `_watch`.
            self._bus.send(message).add_done_callback(lambda sent: sent.exception())


def resolve(call: Message) -> Method:
    """Return the method that a call means. Raises what the bus defines for unknown ones."""
    names = (PEER,) if call.interface == PEER else offered(call.path)
    if not names:
        raise unknown(call.path)
    if call.interface and call.interface not in names:
        text = f"{call.path} has no interface {call.interface}"
        raise DBusError(ErrorType.UNKNOWN_INTERFACE, text)
    within = (interfaces()[each].methods for each in names if call.interface in (None, each))
    method = next((each[call.member] for each in within if call.member in each), None)
    if method is None:
        raise DBusError(ErrorType.UNKNOWN_METHOD, f"{call.path} has no method {call.member}")
    if call.signature != method.takes:
        text = f"{call.member} takes {method.takes!r}, not {call.signature!r}"
        raise DBusError(ErrorType.INVALID_ARGS, text)
    return method


def _error(call: Message, error: ZfsiloError) -> Message:
    facts = {name: str(value) for name, value in error.facts.items()}
    return Message(
        message_type=MessageType.ERROR,
        reply_serial=call.serial,
        destination=call.sender,
        error_name=f"{NAME}.Error.{error.name}",
        signature="ssa{ss}",
        body=clean([error.message, error.reason, facts]),
    )
