"""The change of protocol by which a peer begins a stream, and peers that misuse it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from zfsilod.gateway import dial
from zfsilod.model.records import Snapshot
from zfsilod.service import stream_socket

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.api.replica_pair import ReplicaPair

ULID = "01jzzzzzzzzzzzzzzzzzzzzzzz"
PATH = "/v1/volumes/data:receive"


async def offered(pair: ReplicaPair) -> str:
    """Return the request for a snapshot of the volume."""
    await pair.replicate()
    snapshot = pair.give.read(lambda txn: next(txn.scan(Snapshot)))
    servers = pair.give.service.context.servers
    # Another snapshot than the one that the peer has.
    other = snapshot.but(uid="e" * 32, guid="17")
    return servers.offer(pair.volume(), other, snapshot.guid, raw=False, attempt=ULID)


def exchange(access: dict[str, Any], send: Callable[[Any], bytes]) -> bytes:
    """Connect as the peer, and return what `send` reads."""
    with dial.connected(access) as peer:
        peer.settimeout(20)
        return send(peer)


def head(body: str, *more: str) -> bytes:
    lines = (f"POST {PATH} HTTP/1.1", "Host: x", "Content-Type: application/json", *more)
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", body]).encode()


def ask(body: str, *more: str, then: bytes = b"") -> Callable[[Any], bytes]:
    """Return a client that sends a request, and reads until the end of the answer's head."""

    def send(peer: Any) -> bytes:
        peer.sendall(head(body, *more) + then)
        answer = b""
        while b"\r\n\r\n" not in answer and (piece := peer.recv(65536)):
            answer += piece
        return answer

    return send


async def test_without_the_header_there_is_no_stream(pair: ReplicaPair) -> None:
    body = await offered(pair)
    access = pair.give.service.context.servers.access("other")
    answer = await asyncio.to_thread(exchange, access, ask(body))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert not pair.zvol().get("receiving")


async def test_a_client_that_does_not_wait_gets_no_stream(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_socket, "ID_DEADLINE_S", 1.0)
    body = await offered(pair)
    before = pair.zvol()
    access = pair.give.service.context.servers.access("other")
    upgrade = ("Connection: upgrade", "Upgrade: zfsilo-stream")
    early = ask(body, *upgrade, then=b"x" * 1000)
    answer = await asyncio.to_thread(exchange, access, early)
    assert b" 101 " not in answer
    assert pair.zvol() == before


async def test_another_protocol_is_not_begun(pair: ReplicaPair) -> None:
    body = await offered(pair)
    access = pair.give.service.context.servers.access("other")
    for protocol in ("h2c", "websocket", "zfsilo-stream2"):
        upgrade = ("Connection: upgrade", f"Upgrade: {protocol}")
        answer = await asyncio.to_thread(exchange, access, ask(body, *upgrade))
        assert answer.startswith(b"HTTP/1.1 400 "), protocol
