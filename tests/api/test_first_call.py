"""Nothing of a peer without identity reaches the daemon: the gateway reads its first call."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from zfsilo.v1 import operation_pb2
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import front_of, refused
from tests.api.test_gateway import eventually
from zfsilod.api.rpc import guard, revocations
from zfsilod.gateway import hpack
from zfsilod.gateway.opening import MAX_BLOCK_BYTES, MAX_BYTES, PREFACE, SETTINGS, Opening, frame
from zfsilod.gateway.settling import Settling
from zfsilod.model.records import Token
from zfsilod.security import credentials

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.running import Front
    from zfsilod.security.join_file import Access

LIST = pb.ListVolumesRequest()
ACK = frame(SETTINGS, 1)
# RFC 7541, C.6.1: a response with Huffman codes, indexed for later ones.
RESPONSE = bytes.fromhex(
    "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97"
    "c8e9ae82ae43d3"
)


def literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


TRAILERS = literal(bytes((0x74, 0x65)), b"trailers")


def bearer(token: str) -> bytes:
    return literal(b"authorization", f"Bearer {token}".encode())


def call(block: bytes, flags: int = 4) -> bytes:
    """Return the bytes of a client that begins with a call of ListVolumes, without its end."""
    method = literal(b":path", b"/zfsilo.v1.VolumeService/ListVolumes")
    basics = b"\x83\x86" + method + literal(b":authority", b"x") + TRAILERS
    return frame(1, flags, 1, basics + literal(b"content-type", b"application/grpc") + block)


async def closed(front: Front, data: bytes, access: Access | None = None) -> bytes:
    """Send bytes over TLS, and return what comes until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=context_of(access))
    writer.write(data)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return answer


def context_of(access: Access | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if access is not None:
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(access.key + access.certificate)
            file.flush()
            context.load_cert_chain(file.name)
    return context


@pytest.fixture
def reached(front: Front, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The peers whose connections have reached grpc."""
    peers: list[Any] = []
    real = front.gateway.backend.connect

    def connect(peer: Any, close: Any, **how: Any) -> Any:
        peers.append(peer)
        return real(peer, close, **how)

    monkeypatch.setattr(front.gateway.backend, "connect", connect)
    return peers


@pytest.mark.parametrize("who", ["nobody", "guess", "revoked", "revoked token", "malformed"])
async def test_a_peer_without_identity_never_reaches_grpc(
    front: Front, reached: list[Any], who: str
) -> None:
    access, reason = front.access(), "BAD_TOKEN"
    match who:
        case "nobody":
            reason = "NO_IDENTITY"
        case "guess":
            access.token = front.token("admin", "ops")[:-64] + "0" * 64
        case "malformed":
            access.token = "x" * 3000
        case "revoked":
            access, reason = front.certified("reader", "mon"), "BAD_CERTIFICATE"
            front.write(lambda txn: credentials.revoke(txn, "user/mon", 1, unknown=True))
        case _:
            access.token = front.token("admin", "ops")
            front.write(lambda txn: txn.drop(Token.bucket(), access.token.split("-")[1]))
    with refused("UNAUTHENTICATED", reason) as refusal:
        await front.as_(access).volumes.ListVolumes(LIST, timeout=20)
    assert "token" in refusal.error.message or "certificate" in refusal.error.message
    assert reached == []
    token = front.token("reader", "mon")
    await front.bearer(token).volumes.ListVolumes(LIST, timeout=20)
    assert [peer.token for peer in reached] == [token.split("-")[1]]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        PREFACE[:-1] + b"x",
        PREFACE + b"\xff\xff\xff\0\0\0\0\0\0",
        PREFACE + frame(SETTINGS) + ACK + call(b"\xff\xff\xff\xff\xff\xff"),
        PREFACE + ACK + call(b"", flags=0) + frame(9, 0, 1, b"\0\1a\1b") * 100,
        PREFACE + ACK + frame(1, 4, 1, b"\x40\1a\x7f\xff\xff\xff\xff"),
        (PREFACE + frame(0, 0, 1, bytes(16000)) * 20),
    ],
    ids=("HTTP/1", "preface", "frame", "block", "continuations", "string", "data"),
)
async def test_what_is_not_a_call_ends_the_connection(
    front: Front, reached: list[Any], data: bytes
) -> None:
    try:
        answer = await closed(front, data)
    except ConnectionError:
        answer = b""
    assert answer in (b"", frame(SETTINGS))
    await eventually(lambda: front.gateway.connections == 0)
    assert reached == []


@pytest.mark.parametrize("who", ["token", "certificate"])
async def test_all_in_one_segment_is_answered(front: Front, who: str) -> None:
    """The first call comes together with the end of the handshake, before any settings."""
    token = front.token("reader", "mon") if who == "token" else ""
    access = None if token else front.certified("reader", "mon")
    context = context_of(access)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    with closing(writer):
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await reader.read(65536))
        tls.write(PREFACE + frame(SETTINGS) + call(bearer(token) if token else b""))
        tls.write(frame(0, 1, 1, bytes(5)))
        writer.write(outgoing.read())
        answer = b""
        async with asyncio.timeout(20):
            while b"application/grpc" not in answer:
                received = await reader.read(65536)
                assert received, "the connection was closed"
                incoming.write(received)
                first = not answer
                with suppress(ssl.SSLWantReadError):
                    while True:  # one record each time: a segment may bring several
                        answer += tls.read(65536)
                if first and answer:
                    tls.write(ACK)
                    writer.write(outgoing.read())


@pytest.mark.parametrize("how", ["certificate", "token"])
async def test_open_connections_of_a_revoked_identity_end_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(revocations, "CHECK_S", 0.5)  # of the product: see conftest.py
    async with front_of(tmp_path) as front:
        await _revoke_while_connected(front, how)


async def _revoke_while_connected(front: Front, how: str) -> None:
    token = front.token("reader", "mon")
    api = front.bearer(token) if how == "token" else front.role("reader", "mon")
    other = front.role("reader", "other")
    await other.volumes.ListVolumes(LIST, timeout=20)
    watch = api.operations.WatchOperations(operation_pb2.WatchOperationsRequest())
    await watch.read()
    assert front.gateway.backend.connections == 2
    if how == "token":
        front.write(lambda txn: txn.drop("token", token.split("-")[1]))
    else:
        front.write(lambda txn: credentials.revoke(txn, "user/mon", 1, unknown=True))
    started = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError):
        await asyncio.wait_for(watch.read(), 10)
    assert time.monotonic() - started < 2.5  # of a busy machine; less than the time of a stream
    await eventually(lambda: front.gateway.backend.connections == 1)
    await other.volumes.ListVolumes(LIST, timeout=20)


@pytest.mark.parametrize("chunk", [1, 5, 4096])
def test_the_opening_is_kept_but_for_the_answer_to_the_settings(chunk: int) -> None:
    settings, more = frame(SETTINGS, content=bytes(6)), frame(0, 1, 1, b"x" * 300)
    sent = PREFACE + settings + call(bearer("t"), flags=4) + ACK + more
    opening = Opening()
    for at in range(0, len(sent), chunk):
        opening.follow(sent[at : at + chunk])
        if opening.complete:
            rest = sent[at + chunk :]
            break
    assert bytes(opening.data) + rest == sent.replace(ACK, b"", 1)
    assert opening.headers is not None
    assert opening.headers[b"authorization"] == b"Bearer t"
    assert opening.stream == 1


def test_padding_priority_and_continuations_of_the_first_call() -> None:
    block = literal(b"authorization", b"Bearer t")
    padded = bytes([3]) + bytes(5) + block[:4] + b"pad"
    opening = Opening()
    opening.follow(PREFACE + ACK + frame(1, 8 | 32, 7, padded) + frame(9, 4, 7, block[4:]))
    assert opening.headers == {b"authorization": b"Bearer t"}
    assert opening.stream == 7


@pytest.mark.parametrize(
    "sent",
    [
        frame(1, 0, 1, bytes(MAX_BLOCK_BYTES + 1)),
        frame(1, 8, 1, b""),
        frame(0, 0, 1, bytes(16000)) * (MAX_BYTES // 16000 + 1),
        frame(SETTINGS) * (MAX_BYTES // 9 + 1),
    ],
    ids=("block", "padding", "data", "settings"),
)
def test_an_opening_is_bounded(sent: bytes) -> None:
    opening = Opening()
    try:
        opening.follow(PREFACE + sent)
    except ConnectionAbortedError:
        return
    assert not opening.complete
    assert len(opening.data) < 100


def test_headers_of_the_standard() -> None:
    assert [name for name, _value in hpack.decode(RESPONSE)] == [
        b":status",
        b"cache-control",
        b"date",
        b"location",
    ]
    assert hpack.decode(RESPONSE)[1][1] == b"private"
    assert hpack.decode(RESPONSE)[2][1] == b"Mon, 21 Oct 2013 20:13:21 GMT"
    repeated = b"\x40\1a\1b" + b"\xbe" * 3 + b"\x7e\1c" + b"\xbe\xbf"
    assert hpack.decode(repeated) == [(b"a", b"b")] * 4 + [(b"a", b"c")] * 2 + [(b"a", b"b")]


@pytest.mark.parametrize(
    "block",
    ["80", "bf", "ff", "ffffffffff", "40", "4001", "400161", "3fffff7f", "00018104", "0001618100"],
)
def test_malformed_headers(block: str) -> None:
    with pytest.raises(hpack.MalformedHeaders):
        hpack.decode(bytes.fromhex(block))


def test_the_table_of_headers_is_bounded() -> None:
    entry = b"\x40\1a" + b"\x7f\x81\x1e" + b"v" * (127 + 0x81 - 0x80 + (0x1E << 7))
    hpack.decode(entry)
    with pytest.raises(hpack.MalformedHeaders):  # the first has made room for the second
        hpack.decode(entry + b"\x40\1b\1c" + b"\xbf" * 2 + b"\xc0")


# One entry of the table, named again and again: 4 kB that stand for 3 MB.
ENTRY = b"\x40\1a\x7f" + bytes((0x80 | (900 - 127) % 128, (900 - 127) // 128)) + b"v" * 900
BOMB = ENTRY + b"\xbe" * 3000


@pytest.mark.parametrize("acknowledges", [False, True], ids=("silent", "early"))
@pytest.mark.parametrize("who", ["token", "certificate"])
async def test_headers_of_the_first_call_are_bounded_as_they_count(
    front: Front, monkeypatch: pytest.MonkeyPatch, who: str, *, acknowledges: bool
) -> None:
    """gRPC decodes them without a bound until its settings are acknowledged."""
    calls: list[str] = []
    monkeypatch.setattr(
        guard.CallGuard, "_place", lambda _self, context, **_options: calls.append(context.peer())
    )
    token = front.token("reader", "mon") if who == "token" else ""
    access = None if token else front.certified("reader", "mon")
    block = (bearer(token) if token else b"") + BOMB
    data = PREFACE + frame(SETTINGS) + (ACK if acknowledges or token else b"") + call(block)
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=context_of(access))
    with closing(writer), suppress(ConnectionError):
        writer.write(data)
        answer = b""
        async with asyncio.timeout(20):
            while b"grpc-status" not in answer and (part := await reader.read(65536)):
                answer += part
    assert calls == []


def settings() -> bytes:
    return PREFACE + frame(SETTINGS, 0, 0, bytes(12))


def test_the_first_call_passes_at_once_and_others_wait_for_the_settings() -> None:
    settling = Settling()
    begin = settings() + call(b"") + frame(0, 1, 1, bytes(5))
    assert settling.take(begin) == begin
    settling.offered = True
    further = frame(1, 4, 3, b"\xbe") + frame(0, 1, 3, bytes(5))
    assert settling.take(further) == b""
    assert not settling.settled
    after = frame(6, 0, 0, bytes(8))
    assert settling.take(ACK + after) == ACK + further + after
    assert settling.settled


@pytest.mark.parametrize("size", [1, 7, 8, 9, 10, 1000])
def test_what_is_held_does_not_depend_on_the_segments(size: int) -> None:
    parts = (settings(), call(b""), frame(0, 1, 1, bytes(5)), frame(1, 4, 3, b"\xbe"), ACK)
    data = b"".join(parts)
    settling = Settling()
    settling.offered = True
    passed = b"".join(settling.take(data[at : at + size]) for at in range(0, len(data), size))
    assert passed == b"".join((*parts[:3], parts[4], parts[3]))


@pytest.mark.parametrize(
    "data",
    [call(b"", 0) + frame(9, 4, 1, BOMB), call(BOMB), call(b"") + frame(1, 4, 3, bytes(9000)) * 20],
    ids=("continued", "whole", "many"),
)
def test_too_much_before_the_settings_ends_the_connection(data: bytes) -> None:
    with pytest.raises(ConnectionAbortedError, match="too m"):
        Settling().take(settings() + data)
