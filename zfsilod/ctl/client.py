"""Clients of a daemon: the local one over its socket, a remote one over TLS."""

from __future__ import annotations

import json
import os
import time

from zfsilo.v1.schema import METHODS

from zfsilod.ctl import paths, rpc_errors
from zfsilod.ctl.http import LINES_TYPE, HttpExchange, TlsChannel, UnixChannel, escaped, head_of
from zfsilod.ctl.messages import parsed
from zfsilod.model.errors import PermissionDenied, Unavailable
from zfsilod.model.lean import TYPE_CHECKING, contextmanager

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator
    from typing import Any

    from zfsilod.ctl.messages import Message

READ_S = 30.0
CHANGE_S = 600.0
MARGIN_S = 2.0  # for the answer that says that the deadline is over
PAUSES_S = (0.1, 0.2, 0.5, 1.0)  # between attempts to reach a daemon that restarts
# A hundred volumes with as many labels as allowed take 2 MiB. The local daemon sends more at once,
# since each page costs it a scan of the store.
PAGE_SIZE, LOCAL_PAGE_SIZE = 100, 1000


class Server:
    """A daemon: its channel, its timeouts, and its name in messages."""

    def __init__(
        self,
        channel: UnixChannel | TlsChannel,
        where: str,
        timeout_s: float | None,
        *,
        local: bool = False,
    ) -> None:
        self.local = local
        self.where = where
        self.read_s = timeout_s or READ_S
        self.change_s = timeout_s or CHANGE_S
        self._channel = channel

    def ask(self, method: str, request: Message) -> Any:
        """Call a method that only reads. Raises ZfsiloError."""
        call = HttpCall(self, method, request, self.read_s)
        return call.answer()

    def ask_all(self, method: str, request: Message, field: str) -> list[Any]:
        """Call a List method page by page, and return all entries of `field`."""
        request.page_size = LOCAL_PAGE_SIZE if self.local else PAGE_SIZE
        entries: list[Any] = []
        while True:
            page = self.ask(method, request)
            entries += getattr(page, field)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return entries

    def start(self, method: str, request: Message) -> HttpCall:
        """Call a method that changes something; the call learns the operation's name at once."""
        return HttpCall(self, method, request, self.change_s, lines=True)

    def watch(
        self, method: str, request: Message, timeout_s: float | None, *, patient: bool = False
    ) -> HttpCall:
        """Call a method with a stream of responses; `patient`: wait for a daemon that restarts."""
        return HttpCall(self, method, request, timeout_s, patient=patient)

    def open(self, timeout_s: float | None, *, patient: bool) -> HttpExchange:
        """Connect. Raises ZfsiloError."""
        wait_s = None if timeout_s is None else timeout_s + MARGIN_S
        until = time.monotonic() + (timeout_s or CHANGE_S)
        pauses = iter(PAUSES_S)
        while True:
            try:
                return HttpExchange(self._channel.connect(wait_s))
            except OSError as error:
                failure = self.error_of(error)
                if not patient or failure.code != "UNAVAILABLE" or time.monotonic() > until:
                    raise failure from error
            time.sleep(next(pauses, PAUSES_S[-1]))

    def error_of(self, error: OSError) -> Any:
        """Return the error of a connection that failed."""
        return rpc_errors.connection_error(error, self.where, local=self.local)

    def request_of(
        self, method: str, message: Message, timeout_s: float | None, *, lines: bool
    ) -> bytes:
        """Return the bytes of a request."""
        verb, target, body = _target_of(method, message.encoded())
        headers = {"Host": "zfsilo", "Connection": "close"}
        if timeout_s is not None:
            headers["Zfsilo-Timeout"] = f"{timeout_s:.3f}"
        if self._channel.token:
            headers["Authorization"] = f"Bearer {self._channel.token}"
        if lines:
            headers["Accept"] = LINES_TYPE
        content = b""
        if body is not None:
            content = json.dumps(body).encode()
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(content))}
        return head_of(verb, target, headers) + content


class HttpCall:
    """One call of a method."""

    def __init__(
        self,
        server: Server,
        method: str,
        request: Message,
        timeout_s: float | None,
        *,
        lines: bool = False,
        patient: bool = False,
    ) -> None:
        """Connect and send the request. Raises ZfsiloError."""
        self.operation = ""  # its name, once it is stored
        self.started: Callable[[str], None] = lambda _operation: None
        self._server = server
        self._method = method
        self._changes = lines
        self._exchange = server.open(timeout_s, patient=patient)
        self._raw = server.request_of(method, request, timeout_s, lines=lines)
        self._sent = False

    def learn(self) -> str:
        """Wait until the operation is stored; return its name, "" when there is none to wait for.

        Raises ZfsiloError when the request is refused.
        """
        content = self._next()
        self.operation = str(content.get("started", "")) if content else ""
        return self.operation

    def answer(self) -> Any:
        """Wait for the response. Raises ZfsiloError."""
        try:
            while (content := self._next()) is not None:
                if "started" in content:
                    self.operation = content["started"]
                    self.started(self.operation)
                    continue
                return self._parsed(content)
            raise self._cut_off()
        finally:
            self._exchange.close()

    def responses(self) -> Iterator[Any]:
        """Yield the responses of a watch. Raises ZfsiloError, also unless the last one came."""
        try:
            while (content := self._next()) is not None:
                yield self._parsed(content)
        finally:
            self._exchange.close()

    def cancel(self) -> None:
        """Close the connection; the operation continues."""
        self._exchange.close()

    def _parsed(self, content: dict[str, Any]) -> Message:
        return parsed(METHODS[self._method][4], content)

    def _next(self) -> dict[str, Any] | None:
        """Return the next JSON object of the response, None at its end. Raises ZfsiloError."""
        exchange = self._exchange
        try:
            if not self._sent:
                self._sent = True
                exchange.send(self._raw)
            in_lines = exchange.headers.get("content-type", "").startswith(LINES_TYPE)
            raw = exchange.line() if in_lines else exchange.body()
        except OSError as error:
            exchange.close()
            if exchange.status and not isinstance(error, TimeoutError):
                raise self._cut_off() from error
            raise self._server.error_of(error) from error
        if not raw:
            return None
        try:
            content = json.loads(raw)
        except ValueError:
            raise self._cut_off() from None
        if not isinstance(content, dict):
            raise self._cut_off()
        if exchange.status >= 400:
            raise rpc_errors.error_of(content, self._server.where)
        if in_lines and "error" in content and "code" in content["error"]:
            raise rpc_errors.error_of(content["error"], self._server.where)
        return content

    def _cut_off(self) -> Unavailable:
        continues = "; a submitted operation continues" if self._changes else ""
        return Unavailable(
            f"{self._server.where} closed the connection before the end of its answer{continues}",
            reason="SERVER_UNAVAILABLE",
        )


def _target_of(method: str, fields: dict[str, Any]) -> tuple[str, str, dict[str, Any] | None]:
    """Return verb, target and body of a request."""
    verb, template, variable, body, _output = METHODS[method]
    target = template
    if variable:
        owner = fields
        *parents, last = variable.split(".")
        for parent in parents:
            owner = owner[parent]
        collection, _slash, own_id = str(owner.pop(last, "")).partition("/")
        target = template.replace("{}", f"{collection}/{escaped(own_id)}")
    if body == "*":
        return verb, target, fields
    content = fields.pop(body, {}) if body else None
    parameters = "&".join(_parameters(fields))
    return verb, f"{target}?{parameters}" if parameters else target, content


def _parameters(fields: dict[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        for entry in value if isinstance(value, list) else [value]:
            text = str(entry).lower() if isinstance(entry, bool) else str(entry)
            yield f"{name}={escaped(text)}"


@contextmanager
def dial(args: Namespace) -> Iterator[Server]:
    """Return the daemon that the arguments name."""
    if args.remote:
        from zfsilod.ctl.server_files import channel_to, find

        server = find(args.remote)
        where = f"{args.remote} ({server.address})"
        yield Server(channel_to(server), where, args.timeout)
    else:
        path = args.socket or paths.socket()
        _check(path)
        yield Server(UnixChannel(path), f"zfsilod at {path}", args.timeout, local=True)


def _check(path: str) -> None:
    if not os.path.exists(path):  # noqa: PTH110 - importing pathlib takes longer than the call
        raise Unavailable(
            f"zfsilod is not running: its socket {path} does not exist",
            reason="NO_DAEMON",
            socket=path,
        )
    if not os.access(path, os.W_OK):
        raise PermissionDenied(
            f"no access to the socket {path}: use sudo, or join the group zfsilo",
            reason="NO_ACCESS",
            socket=path,
        )
