"""A client of a bus that writes bytes: messages that no library would send."""

from __future__ import annotations

import os
import socket
import struct

from zfsilod.api.dbus.contract import MANAGER, NAME, ROOT

CALL, SIGNAL = 1, 4
NO_REPLY = 1
PATH, INTERFACE, MEMBER, DESTINATION, SIGNATURE = 1, 2, 3, 6, 8
DEADLINE_S = 30


class RawClient:
    """One connection; `bytes` in, bytes out."""

    def __init__(self, address: str, user: int = 0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        before = os.geteuid()
        os.seteuid(user or before)  # the kernel reports the uid to the bus, at connect(2)
        try:
            self._socket.connect(address.removeprefix("unix:path="))
        finally:
            os.seteuid(before)
        uid = str(user or before).encode().hex()
        self._socket.sendall(f"\0AUTH EXTERNAL {uid}\r\n".encode())
        assert self._socket.recv(200).startswith(b"OK")
        self._socket.sendall(b"BEGIN\r\n")
        bus = "org.freedesktop.DBus"
        self.send(message(to=bus, path="/org/freedesktop/DBus", interface=bus, member="Hello"))
        assert self._socket.recv(4096)

    def send(self, raw: bytes) -> None:
        """Send bytes."""
        self._socket.sendall(raw)

    def receive_until(self, wanted: bytes) -> bytes:
        """Receive until these bytes have come, and return all that came."""
        received = b""
        while wanted not in received:
            received += self._socket.recv(1 << 16)
        return received

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def message(
    body: bytes = b"",
    *,
    to: str = NAME,
    path: str = ROOT,
    interface: str = MANAGER,
    member: str = "GetVolume",
    signature: str = "",
    kind: int = CALL,
    flags: int = 0,
    serial: int = 7,
    more: bytes = b"",
) -> bytes:
    """Return a message; `more`: header fields at the end."""
    fields = b""
    for code, letter, text in (
        (PATH, "o", path),
        (INTERFACE, "s", interface),
        (MEMBER, "s", member),
        (DESTINATION, "s", to),
    ):
        fields = _padded(fields) + struct.pack("<B3sI", code, b"\x01" + letter.encode(), len(text))
        fields += text.encode() + b"\0"
    if signature:
        fields = _padded(fields) + struct.pack("<B3sB", SIGNATURE, b"\x01g", len(signature))
        fields += signature.encode() + b"\0"
    if more:
        fields = _padded(fields) + more
    head = struct.pack("<cBBBIII", b"l", kind, flags, 1, len(body), serial, len(fields))
    return _padded(head + fields) + body


def strings(count: int) -> bytes:
    """Return the body of an `as` of so many empty strings, 8 bytes each."""
    return struct.pack("<I", 8 * count - 3) + bytes(8 * count - 3)


def variants(depth: int) -> bytes:
    """Return the body of a `v` with variants in it."""
    return b"\x01v\0" * depth + b"\x01y\0" + b"\0"


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 8)
