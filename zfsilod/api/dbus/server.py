"""The D-Bus front end: one handler for every message, dispatched by the contract.

No object is exported to the D-Bus library: each call looks its path up in the store, so that
100,000 volumes take no memory here.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial, wraps
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

from zfsilod.api.dbus.admission import Admission
from zfsilod.api.dbus.contract import (
    INTROSPECTABLE,
    NAME,
    NODES,
    OBJECT_MANAGER,
    PEER,
    PROPERTIES,
    ROOT,
    Method,
    interfaces,
    interfaces_at,
    introspection,
    split,
)
from zfsilod.api.dbus.methods import Methods, only_plan
from zfsilod.api.dbus.mutations import MUTATIONS
from zfsilod.api.dbus.objects import Objects, unknown
from zfsilod.api.dbus.polkit import Identities
from zfsilod.api.dbus.properties import clean
from zfsilod.api.dbus.signals import Signals
from zfsilod.model.errors import Internal, PermissionDenied, Unavailable, ZfsiloError, disk_error
from zfsilod.model.identity import Caller
from zfsilod.security.authorization import READ
from zfsilod.systemd.bus import close_socket, connect, reader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbus_next.aio import MessageBus

    from zfsilod.model.records import Operation
    from zfsilod.service.service import Service
    from zfsilod.systemd.messages import IncomingCall

CLOSE_DEADLINE_S = 5
MACHINE_ID = Path("/etc/machine-id")

NOBODY = Caller(role="reader", subject="", origin="")  # without rights
OPEN = (PEER, INTROSPECTABLE)  # interfaces that need no authorization

log = logging.getLogger(__name__)


async def serve(bus_address: str | None, service: Service, *, version: str) -> DbusFront:
    """Acquire the name org.zfsilo1 on a bus (None: the system bus) and serve it until `close`.

    Raises Unavailable if there is no bus or if the name has another owner, PermissionDenied if the
    policy of the bus forbids to own the name.
    """
    interfaces()  # a contract that is not installed fails now, not at the first call
    bus = await connect(bus_address)
    front = DbusFront(bus, service, version)
    try:
        await front.start()
    except BaseException:
        await front.close()
        raise
    return front


def errors_as_replies(
    handler: Callable[[DbusFront, IncomingCall], Awaitable[Message]],
) -> Callable[[DbusFront, IncomingCall], Awaitable[Message]]:
    """Return a handler that replies with every error that the handler raises."""

    @wraps(handler)
    async def guarded(front: DbusFront, call: IncomingCall) -> Message:
        try:
            return await handler(front, call)
        except DBusError as error:
            return Message.new_error(call, error.type, clean(error.text))
        except ZfsiloError as error:
            return _error(call, error)
        except OSError as error:
            shown = disk_error(error)
            if shown is None:
                log.exception("D-Bus call %s.%s failed", call.interface, call.member)
            return _error(call, shown or Internal("internal error; see the zfsilod journal"))
        except Exception:
            log.exception("D-Bus call %s.%s failed", call.interface, call.member)
            return _error(call, Internal("internal error; see the zfsilod journal"))

    return guarded


class DbusFront:
    """The service on one bus."""

    def __init__(self, bus: MessageBus, service: Service, version: str) -> None:
        self._bus = bus
        self._service = service
        self._loop = asyncio.get_running_loop()
        self.identities = Identities(bus)
        self._objects = Objects(service, version)
        self._signals = Signals(self._objects, self.emit)
        self._methods = Methods(service, self._objects)
        self._admission = Admission(self.identities.uids)
        self._last_sent: asyncio.Future[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._closed = self._loop.create_task(self._watch())

    async def start(self) -> None:
        """Subscribe to messages and operations, and acquire the name."""
        reader(self._bus).on_call = self._received
        reader(self._bus).on_name_lost = self.identities.forget
        self._service.executor.listeners.append(self._operation_changed)
        await self.identities.start()
        try:
            reply = await self._bus.request_name(NAME, NameFlag.DO_NOT_QUEUE)
        except DBusError as error:
            raise PermissionDenied(
                f"the bus does not allow zfsilod to own {NAME}: {error.text}; install the policy "
                f"{NAME}.conf and run zfsilod as root"
            ) from error
        if reply is not RequestNameReply.PRIMARY_OWNER:
            raise Unavailable(f"bus name {NAME} has another owner: stop the other zfsilod")

    async def closed(self) -> None:
        """Wait until the connection is closed, by `close` or by the bus."""
        await asyncio.wait([self._closed])

    async def close(self) -> None:
        """Wait for running calls, and disconnect."""
        if self._operation_changed in self._service.executor.listeners:
            self._service.executor.listeners.remove(self._operation_changed)
        if self._calls:
            await asyncio.wait(self._calls, timeout=CLOSE_DEADLINE_S)
        for call in self._calls:
            call.cancel()
        self.identities.close()
        if self._last_sent is not None and self._bus.connected:
            # Replies are written when the socket takes them, in their order.
            await asyncio.wait([self._last_sent], timeout=CLOSE_DEADLINE_S)
        if self._bus.connected:
            self._bus.disconnect()
        await self.closed()

    async def _watch(self) -> None:
        """Wait until the connection is closed, and log the error that closed it, if any."""
        end = self._loop.create_task(self._bus.wait_for_disconnect())
        await asyncio.wait([end])
        if end.exception():
            log.error("lost the connection to the bus: %r", end.exception())
        close_socket(self._bus)

    # Calls

    def _received(self, call: IncomingCall) -> None:
        """Start a call, hold it until its user is known, or refuse it by its header alone."""
        refusal = self._admission.refusal(call)
        is_known = call.sender in self.identities.uids
        if not refusal and not is_known:
            refusal = self._admission.hold(call)
        if refusal:
            if call.wants_reply:
                self._send(Message.new_error(call, ErrorType.LIMITS_EXCEEDED, refusal))
        elif is_known:
            self._start(call)
        else:
            self.identities.ask(call.sender, partial(self._told, call))

    def _told(self, call: IncomingCall, uid: int | None) -> None:
        self._admission.release(call)
        if uid is not None:  # else its caller is gone
            self._received(call)

    def _start(self, call: IncomingCall) -> None:
        call.uid = self.identities.uids[call.sender]
        task = self._loop.create_task(self._serve(call))
        self._calls.add(task)
        self._admission.start(call)
        task.add_done_callback(self._calls.discard)
        task.add_done_callback(lambda _task: self._admission.end(call))

    async def _serve(self, call: IncomingCall) -> None:
        reply = await self._reply(call)
        if call.wants_reply:
            self._send(reply)

    @errors_as_replies
    async def _reply(self, call: IncomingCall) -> Message:
        await self._wait_for_turn(call)
        method = resolve(call)
        try:
            return await self._authorize_and_call(call, method)
        except (DBusError, ZfsiloError) as error:
            if method.action != READ and method.interface.startswith(NAME):
                refusal = error
                if isinstance(error, DBusError):
                    reason = error.type.rpartition(".")[2].upper()
                    refusal = PermissionDenied(error.text, reason=reason)
                uid = self.identities.known_uid(call.sender)
                self._service.audit.refused(f"uid {uid} (dbus)", method.name, call.path, refusal)
            raise

    async def _wait_for_turn(self, call: IncomingCall) -> None:
        """Wait until the pace of the caller's user admits the call. Raises LimitsExceeded."""
        wait_s = self._admission.wait_s(call.uid, call.member)
        if wait_s:
            await asyncio.sleep(wait_s)

    async def _authorize_and_call(self, call: IncomingCall, method: Method) -> Message:
        caller = NOBODY
        if method.interface not in OPEN:
            interactive = bool(call.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
            try:
                caller = await self.identities.authorize(
                    call.sender, method.action, interactive=interactive
                )
            except DBusError:
                self._admission.refused(call)
                raise
        body = await self._call(method, call, caller)
        reply = Message.new_method_return(call, method.output, body)
        reply.serial = self._bus.next_serial()
        # Marshalled here, so that a value of the wrong type is an error of this call. Marshalling
        # all objects takes a second: in a thread, not on the event loop.
        large = method.interface == OBJECT_MANAGER
        raw = await asyncio.to_thread(reply._marshall) if large else reply._marshall()
        reply._marshall = lambda **_options: raw
        return reply

    async def _call(self, method: Method, call: IncomingCall, caller: Caller) -> list[Any]:
        if method.interface == PEER:
            return [MACHINE_ID.read_text().strip()] if method.output else []
        if method.interface == INTROSPECTABLE:
            return [introspection(interfaces_at(call.path), await self._children(call))]
        if method.interface == PROPERTIES:
            return self._properties(call.path, method.name, *call.body)
        if method.interface == OBJECT_MANAGER:
            return [await asyncio.to_thread(self._managed)]
        _kind, *own_id = split(call.path) or ("",)
        arguments = [*own_id, *call.body]
        name = f"{method.interface}.{method.name}"
        body = await self._methods.call(name, arguments, caller)
        if method.action != READ and name not in MUTATIONS and not only_plan(call.body):
            self._service.audit.record(str(caller), method.name, call.path, outcome="DONE")
        return [clean(value) for value in body]

    async def _children(self, call: IncomingCall) -> list[str] | None:
        """Return the nodes below a path; a caller who may not read sees no objects."""
        path = call.path
        if path in (*NODES[:2], ROOT):
            return self._objects.children(path)
        try:
            await self.identities.authorize(call.sender, READ)
        except DBusError as error:
            if error.type == ErrorType.LIMITS_EXCEEDED.value:
                raise
            return []
        if split(path):
            self._objects.need(path)
        return await asyncio.to_thread(self._objects.children, path)

    def _properties(self, path: str, method: str, interface: str, *arguments: Any) -> list[Any]:
        shown = self._objects.need(path)
        has_properties = interface in ("", shown.interface)
        if not has_properties and interface not in interfaces_at(path):
            raise DBusError(ErrorType.UNKNOWN_INTERFACE, f"{path} has no interface {interface}")
        if method == "GetAll":
            return [shown.all() if has_properties else {}]
        name = arguments[0]
        if not has_properties or name not in interfaces()[shown.interface].properties:
            text = f"{path} has no property {interface}.{name}"
            raise DBusError(ErrorType.UNKNOWN_PROPERTY, text)
        if method == "Set":
            raise DBusError(ErrorType.PROPERTY_READ_ONLY, f"property {name} is read-only")
        return [shown.get(name)]

    def _managed(self) -> dict[str, dict[str, dict[str, Any]]]:
        return {shown.path: {shown.interface: shown.all()} for shown in self._objects.managed()}

    # Signals

    def _operation_changed(self, operation: Operation) -> None:
        """Emit signals in the next iteration: after the reply to the call that submitted it."""
        self._loop.call_soon(self._signals.changed, operation)

    def emit(self, path: str, interface: str, member: str, signature: str, body: list[Any]) -> None:
        self._send(Message.new_signal(path, interface, member, signature, clean(body)))

    def _send(self, message: Message) -> None:
        if self._bus.connected:
            # `_watch` logs a lost connection, once.
            self._last_sent = self._bus.send(message)
            self._last_sent.add_done_callback(lambda sent: sent.exception())


def resolve(call: IncomingCall) -> Method:
    """Return the method of a call. Raises the errors that D-Bus defines for unknown names."""
    names = (PEER,) if call.interface == PEER else interfaces_at(call.path)
    if not names:
        raise unknown(call.path)
    if call.interface and call.interface not in names:
        text = f"{call.path} has no interface {call.interface}"
        raise DBusError(ErrorType.UNKNOWN_INTERFACE, text)
    tables = [interfaces()[name].methods for name in names if call.interface in (None, name)]
    method = next((methods[call.member] for methods in tables if call.member in methods), None)
    if method is None:
        raise DBusError(ErrorType.UNKNOWN_METHOD, f"{call.path} has no method {call.member}")
    if call.signature != method.input:
        text = f"{call.member} has the signature {method.input!r}, not {call.signature!r}"
        raise DBusError(ErrorType.INVALID_ARGS, text)
    return method


def _error(call: IncomingCall, error: ZfsiloError) -> Message:
    facts = {name: str(value) for name, value in error.facts.items()}
    return Message(
        message_type=MessageType.ERROR,
        reply_serial=call.serial,
        destination=call.sender,
        error_name=f"{NAME}.Error.{error.name}",
        signature="ssa{ss}",
        body=clean([error.message, error.reason, facts]),
    )
