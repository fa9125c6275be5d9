"""zfsilo-gateway dial: carries a stream to the gateway of a peer, over TLS.

A process of its own for each stream, without privileges. Its standard input is a socket to the
daemon, which hands it a file with the credentials, and the socket that the stream comes from. It
asks the peer for a change of protocol, and then copies: this is the only place on this host where
the bytes of a stream pass a process besides zfs. The daemon is told how many were sent:

    daemon                                      this process
    open: address, tls_name, path, body, rate   opened, or refused: status, body
        (a file with credentials)
    stream (a socket)                           sent: bytes        each second
    rate: bytes         when it changes         ended: bytes, why
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from zfsilod.gateway import packets
from zfsilod.gateway.sockets import keep_alive
from zfsilod.model.names import split_address
from zfsilod.model.replica import MIN_RATE
from zfsilod.security.tls import load_pair

if TYPE_CHECKING:
    from zfsilod.gateway.packets import Packet

CONNECT_S = 20.0
ANSWER_S = 90.0  # of the peer, which may wait for an earlier attempt
STALL_S = 300.0  # for the peer to take a piece
PIECE_BYTES = 262144
HEAD_BYTES = 16384
BODY_BYTES = 10240  # as JSON at most six times as many: it fits into a packet
STATUS_DIGITS = 3
END_OF_JSON = b"}\n"  # of every answer of zfsilod
SWITCHING = 101
TELL_S = 1.0
BURST_S = 0.1  # of silence that may be made up for
KERNEL_TLS = 1 << 3  # SSL_OP_ENABLE_KTLS of OpenSSL 3, where the kernel has the module tls


class Refused(Exception):
    """The peer does not take the stream."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body


def connected(access: Packet) -> ssl.SSLSocket:
    """Connect to the peer, whose certificate must be for its name. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= KERNEL_TLS
    context.load_verify_locations(cadata=str(access["authority"]))
    context.set_alpn_protocols(["http/1.1"])
    if access["certificate"]:
        load_pair(context, f"{access['key']}\n{access['certificate']}\n")
    address = split_address(str(access["address"]))
    plain = socket.create_connection(address, timeout=CONNECT_S)
    keep_alive(plain)
    try:
        return context.wrap_socket(plain, server_hostname=str(access["tls_name"]))
    except BaseException:
        plain.close()
        raise


def ask(peer: ssl.SSLSocket, access: Packet) -> None:
    """Ask the peer to take a stream. Raises Refused, and OSError."""
    body = str(access["body"]).encode()
    token = f"Authorization: Bearer {access['token']}\r\n" if access["token"] else ""
    head = (
        f"POST {access['path']} HTTP/1.1\r\nHost: {access['tls_name']}\r\n{token}"
        "Connection: upgrade\r\nUpgrade: zfsilo-stream\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    until = time.monotonic() + ANSWER_S  # of the whole answer: it may come byte by byte
    peer.settimeout(ANSWER_S)
    peer.sendall(head.encode() + body)
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = _more(peer, until)
        if not more:
            raise ConnectionAbortedError("the peer ended the connection before its answer")
        answer += more
        if len(answer) > HEAD_BYTES:
            raise ConnectionAbortedError("the peer answers with too long a head")
    first, _end, rest = answer.partition(b"\r\n")
    words = first.split()
    valid = len(words) > 1 and len(words[1]) == STATUS_DIGITS and words[1].isdigit()
    status = int(words[1]) if valid else 0
    if status == SWITCHING:
        return
    refusal = rest.partition(b"\r\n\r\n")[2]
    while len(refusal) < BODY_BYTES and not refusal.endswith(END_OF_JSON):
        more = _more(peer, until)
        if not more:
            break
        refusal += more
    raise Refused(status, refusal[:BODY_BYTES])


def _more(peer: ssl.SSLSocket, until: float) -> bytes:
    """Return more of the answer; b"": it ended. Raises OSError, also after `until`."""
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the peer does not answer in time")
    peer.settimeout(left_s)
    return peer.recv(HEAD_BYTES)


class Carrier:
    """Copies a stream to the peer at a rate, and tells the daemon how far it is."""

    def __init__(self, daemon: socket.socket, stream: socket.socket, rate: int) -> None:
        self.daemon = daemon
        self.stream = stream
        self.rate = rate  # bytes a second; 0: no limit
        self.sent = 0

    def carry(self, peer: ssl.SSLSocket) -> None:
        """Copy to the end of the stream. Raises OSError."""
        peer.settimeout(STALL_S)
        due = told = time.monotonic()
        while piece := self.stream.recv(self._piece_bytes()):
            peer.sendall(piece)
            self.sent += len(piece)
            now = time.monotonic()
            if now - told >= TELL_S:
                packets.send(self.daemon, {"tell": "sent", "bytes": self.sent})
                told = now
            if self.rate:
                due = max(due, now - BURST_S) + len(piece) / self.rate
            self._wait(due - now)
        # close_notify: the peer takes it for the end. Its own is not awaited, nor needed.
        peer.settimeout(0)
        with suppress(OSError):
            peer.unwrap()

    def _piece_bytes(self) -> int:
        return min(PIECE_BYTES, max(4096, int(self.rate * BURST_S) or PIECE_BYTES))

    def _wait(self, seconds: float) -> None:
        """Wait, or until the daemon tells another rate, or ends."""
        readable, _write, _urgent = select.select([self.daemon], [], [], max(0.0, seconds))
        if readable:
            self.hear()

    def hear(self) -> None:
        """Take the rate that the daemon tells. Raises ConnectionAbortedError when it has ended."""
        try:
            received = packets.receive(self.daemon)
        except ValueError as error:
            raise ConnectionAbortedError(str(error)) from None
        if received is None:
            raise ConnectionAbortedError("zfsilod has ended")
        told, descriptor = received
        if descriptor is not None:
            os.close(descriptor)
        match told:
            case {"tell": "rate", "bytes": int(rate)} if not rate or rate >= MIN_RATE:
                self.rate = rate
            case _:
                raise ConnectionAbortedError("zfsilod tells nonsense")


def run(daemon: socket.socket) -> None:
    """Carry one stream for a daemon."""
    opening = packets.receive(daemon)
    handed = packets.receive(daemon)
    if opening is None or handed is None or opening[1] is None or handed[1] is None:
        return
    access = opening[0] | packets.from_file(opening[1])
    stream = socket.socket(fileno=handed[1])
    carrier = Carrier(daemon, stream, int(access["rate"]))
    why = ""
    try:
        with connected(access) as peer:
            ask(peer, access)
            packets.send(daemon, {"tell": "opened"})
            carrier.carry(peer)
    except Refused as refused:
        body = refused.body.decode(errors="replace")
        packets.send(daemon, {"tell": "refused", "status": refused.status, "body": body})
        return
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
    finally:
        stream.close()
    packets.send(daemon, {"tell": "ended", "bytes": carrier.sent, "why": why})


def main() -> int:
    """Carry the stream of the socket that is the standard input."""
    daemon = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    daemon.settimeout(None)
    try:
        run(daemon)
    except OSError:
        return 1  # the daemon is gone
    return 0
