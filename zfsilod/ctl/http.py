"""Requests to a daemon over its unix socket or over TLS, with the standard library alone.

Each request has a connection of its own. It is of HTTP/1.1, so that a response has a length or an
end of its own: the end of a connection proves nothing. The import of http.client would take longer
than the request.
"""

from __future__ import annotations

import os

from zfsilod.model.lean import TYPE_CHECKING, socket

if TYPE_CHECKING:
    from typing import Any

    from zfsilod.security.join_file import Access

LINES_TYPE = "application/jsonl"
MAX_LINE, MAX_HEADERS = 16384, 100  # of a head
MAX_BODY = 64 << 20
READ_BYTES = 65536
MAX_DIGITS = 16
DIGITS = {10: frozenset("0123456789"), 16: frozenset("0123456789abcdefABCDEF")}
NO_ANSWER = "the connection was closed without an answer"
PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-~")


class UnixChannel:
    """The way to the local daemon."""

    token = ""

    def __init__(self, path: str) -> None:
        self._path = path

    def connect(self, timeout_s: float | None) -> Any:
        """Return a new connection. Raises OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            raise
        return connection


class TlsChannel:
    """The way to a remote daemon; its certificate must be for `access.tls_name`."""

    def __init__(self, access: Access) -> None:
        self.token = access.token
        self._access = access
        self._context: Any = None

    def connect(self, timeout_s: float | None) -> Any:
        """Return a new connection. Raises OSError, of which ssl.SSLError is one."""
        from socket import SO_KEEPALIVE, SOL_SOCKET, create_connection

        from zfsilod.model.names import split_address

        if self._context is None:
            self._context = _client_context(self._access)
        connection = create_connection(split_address(self._access.address), timeout_s)
        connection.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
        try:
            return self._context.wrap_socket(connection, server_hostname=self._access.tls_name)
        except OSError:
            connection.close()
            raise


class HttpExchange:
    """One request and its response, whose body is read as a whole or by lines."""

    def __init__(self, connection: Any) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False  # the whole body is received
        self._connection = connection
        self._buffer = b""  # received
        self._body = b""  # received of the body, without the frames of chunks
        self._left: int | None = 0  # of the body, or of its chunk; None: all until the end
        self._chunked = False

    def send(self, request: bytes) -> None:
        """Send the request, and read the head of the response. Raises OSError."""
        self._connection.sendall(request)
        first = self._head_line().split(" ", 2)
        if len(first) < 2 or not first[0].startswith("HTTP/1.") or not first[1].isdecimal():
            raise ConnectionAbortedError("the answer is not HTTP")
        self.status = int(first[1])
        self.headers = self._head_fields()
        self._chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        if not self._chunked:
            size = self.headers.get("content-length")
            self._left = None if size is None else _number(size, 10)

    def line(self) -> bytes:
        """Return the next line of the body, b"" after the last.

        Raises OSError, also when it is not proved that the last line is the last one.
        """
        at = self._body.find(b"\n")
        while at < 0 and (part := self._part()):
            self._body += part
            if len(self._body) > MAX_BODY:
                raise ConnectionAbortedError("the answer is too large")
            at = self._body.find(b"\n")
        end = at + 1 if at >= 0 else len(self._body)
        text, self._body = self._body[:end], self._body[end:]
        if not text and not self.complete:
            raise _cut_off()
        return text

    def body(self) -> bytes:
        """Return the whole body. Raises OSError when it is cut off."""
        parts, size = [], 0
        while part := self._part():
            parts.append(part)
            size += len(part)
            if size > MAX_BODY:
                raise ConnectionAbortedError("the answer is too large")
        return b"".join(parts)

    def close(self) -> None:
        """Close the connection; another thread that reads it gets the end."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other side has closed it
            return
        finally:
            self._connection.close()

    def _part(self) -> bytes:
        """Return some of the body, b"" at its end. Raises OSError when it is cut off."""
        if self._chunked and not self._left and not self.complete:
            self._left = _number(self._head_line().partition(";")[0].strip(), 16)
            if not self._left:
                self._head_fields()  # behind the last chunk
                self.complete = True
        self.complete |= self._left == 0
        if self.complete:
            return b""
        if not self._buffer and not self._receive():
            if self._left is not None:
                raise _cut_off()
            return b""
        part = self._buffer[: self._left]
        self._buffer = self._buffer[len(part) :]
        if self._left is not None:
            self._left -= len(part)
            if self._chunked and not self._left and self._head_line():
                raise ConnectionAbortedError("the answer is not HTTP")
        return part

    def _head_fields(self) -> dict[str, str]:
        """Return the fields until an empty line."""
        fields: dict[str, str] = {}
        for _field in range(MAX_HEADERS):
            text = self._head_line()
            if not text:
                return fields
            name, _colon, value = text.partition(":")
            fields[name.strip().lower()] = value.strip()
        raise ConnectionAbortedError("the answer has too many headers")

    def _head_line(self) -> str:
        """Return a line that is not of the body."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE:
                raise ConnectionAbortedError("the answer is not HTTP")
            if not self._receive():
                raise _cut_off() if self.headers else ConnectionAbortedError(NO_ANSWER)
        text, _newline, self._buffer = self._buffer.partition(b"\n")
        return text.decode("latin-1").rstrip("\r")

    def _receive(self) -> bool:
        data = self._connection.recv(READ_BYTES)
        self._buffer += data
        return bool(data)


def head_of(verb: str, target: str, headers: dict[str, str]) -> bytes:
    """Return the head of a request."""
    lines = [f"{verb} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def _number(text: str, base: int) -> int:
    """Return the size of a body or of a chunk."""
    if not DIGITS[base].issuperset(text) or not 0 < len(text) <= MAX_DIGITS:
        raise ConnectionAbortedError("the answer is not HTTP")
    return int(text, base)


def _cut_off() -> OSError:
    return ConnectionAbortedError("the connection was closed before the end of the answer")


def escaped(text: str) -> str:
    """Return a text as a part of a URL."""
    if PLAIN.issuperset(text):
        return text
    from urllib.parse import quote

    return quote(text, safe="")


def _client_context(access: Access) -> Any:
    """Return the TLS of a client: the authority of the server alone, and the own certificate."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["http/1.1"])
    context.load_verify_locations(cadata=access.authority)
    if access.certificate:
        with os.fdopen(os.memfd_create("zfsilo-client"), "wb") as file:  # ssl reads files only
            file.write(f"{access.key}\n{access.certificate}".encode())
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context
