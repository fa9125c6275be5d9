"""Requests to a daemon over its unix socket or over TLS, with the standard library alone.

Each request has a connection of its own and is of HTTP/1.0, so that the response ends with the
connection and has no chunks. The import of http.client would take longer than the request.
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
        self._connection = connection
        self._buffer = b""
        self._ended = False

    def send(self, request: bytes) -> None:
        """Send the request, and read the head of the response. Raises OSError."""
        self._connection.sendall(request)
        first = self._head_line().split(" ", 2)
        if len(first) < 2 or not first[0].startswith("HTTP/1.") or not first[1].isdecimal():
            raise ConnectionAbortedError("the answer is not HTTP")
        self.status = int(first[1])
        for _header in range(MAX_HEADERS):
            text = self._head_line()
            if not text:
                return
            name, _colon, value = text.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        raise ConnectionAbortedError("the answer has too many headers")

    def line(self) -> bytes:
        """Return the next line of the body, b"" after the last. Raises OSError."""
        at = self._buffer.find(b"\n")
        while at < 0 and self._receive():
            at = self._buffer.find(b"\n")
        end = at + 1 if at >= 0 else len(self._buffer)
        text, self._buffer = self._buffer[:end], self._buffer[end:]
        return text

    def body(self) -> bytes:
        """Return the whole body. Raises OSError when it is cut off."""
        parts = [self._buffer]
        self._buffer = b""
        size = len(parts[0])
        while data := b"" if self._ended else self._connection.recv(READ_BYTES):
            parts.append(data)
            size += len(data)
            if size > MAX_BODY:
                raise ConnectionAbortedError("the answer is too large")
        whole = b"".join(parts)
        if len(whole) < int(self.headers.get("content-length", "0")):
            raise ConnectionAbortedError("the answer was cut off")
        return whole

    def close(self) -> None:
        """Close the connection; another thread that reads it gets the end."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other side has closed it
            return
        finally:
            self._connection.close()

    def _head_line(self) -> str:
        text = self.line()
        if not text.endswith(b"\n"):
            raise ConnectionAbortedError("the connection was closed without an answer")
        return text.decode("latin-1").rstrip("\r\n")

    def _receive(self) -> bool:
        data = b"" if self._ended else self._connection.recv(READ_BYTES)
        self._ended = not data
        self._buffer += data
        if len(self._buffer) > (MAX_BODY if self.headers else MAX_LINE * 4):
            raise ConnectionAbortedError("the answer is too large")
        return not self._ended


def head_of(verb: str, target: str, headers: dict[str, str]) -> bytes:
    """Return the head of a request."""
    lines = [f"{verb} {target} HTTP/1.0", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


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
