"""The gateway with the gRPC server behind it: TLS, silent connections, bypassed gateways."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, get_args

import grpc
import pytest
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import front_of, refused
from tests.api.test_gateway import eventually
from zfsilod.gateway import frames, limits, listener
from zfsilod.gateway import tls as gateway_tls
from zfsilod.gateway.limits import Limits
from zfsilod.model.identity import PeerKind
from zfsilod.wire.stub import Api

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.running import Front
    from zfsilod.model.identity import Peer


async def test_connections_that_bypass_the_gateway_are_refused(front: Front) -> None:
    for kind in get_args(PeerKind):
        path, options = (
            front.gateway.backend.socket_of(kind),
            [("grpc.default_authority", "localhost")],
        )
        channel = grpc.aio.insecure_channel(f"unix:{path}", options=options)
        front.channels.append(channel)
        with refused("UNAUTHENTICATED") as refusal:
            await Api(channel).volumes.ListVolumes(pb.ListVolumesRequest())
        assert refusal.error.message == "connection bypassed the gateway"


SERVE = """
import asyncio, sys
from pathlib import Path
from tests.api.running import front_of

async def serve():
    async with front_of(Path(sys.argv[1])) as front:
        print(front.port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(serve())
"""


def test_the_tcp_port_speaks_tls_13_only(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path)],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with pytest.raises((ssl.SSLError, ConnectionError)):
            spoken(port, ssl.TLSVersion.TLSv1_2)
        assert spoken(port, ssl.TLSVersion.TLSv1_3) == ("TLSv1.3", "h2")
        server.stdin.close()


def spoken(port: int, version: ssl.TLSVersion) -> tuple[str | None, str | None]:
    """Return version and protocol of a TLS connection of at most this version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.maximum_version = version
    with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw) as tls:
        return tls.version(), tls.selected_alpn_protocol()


async def test_plain_text_on_the_tcp_port_is_refused(front: Front) -> None:
    channel = grpc.aio.insecure_channel(front.address)
    front.channels.append(channel)
    with refused("UNAVAILABLE"):
        await Api(channel).volumes.ListVolumes(pb.ListVolumesRequest())


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_a_silent_connection_is_closed(tmp_path: Path, monkeypatch: Any, kind: str) -> None:
    monkeypatch.setattr(
        "zfsilod.api.rpc.server.OPTIONS", (("grpc.server_handshake_timeout_ms", 500),)
    )
    monkeypatch.setattr(listener, "ADMISSION_S", 0.5)
    monkeypatch.setattr("zfsilod.gateway.local.GREETING_S", 0.5)
    async with front_of(tmp_path) as front:
        started = time.monotonic()
        if kind == "unix":
            reader, writer = await asyncio.open_unix_connection(str(front.path))
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        async with asyncio.timeout(10):
            while await reader.read(1000):
                pass
        assert time.monotonic() - started < 5
        writer.close()
        await eventually(lambda: front.gateway.connections == 0)


async def test_a_gateway_that_stops_listening_keeps_its_connections(front: Front) -> None:
    api = front.root()
    await api.volumes.ListVolumes(pb.ListVolumesRequest())
    front.gateway.stop_listening()
    await api.volumes.ListVolumes(pb.ListVolumesRequest())
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", front.port)


async def test_many_calls_at_once(front: Front) -> None:
    apis = [front.root(), front.role("reader", "monitor")]
    calls = [
        api.volumes.ListVolumes(pb.ListVolumesRequest()) for api in apis for _number in range(100)
    ]
    assert len(await asyncio.gather(*calls)) == 200


async def test_a_peer_that_proves_nothing_is_disconnected(front: Front, monkeypatch: Any) -> None:
    """A handshake without a certificate, and the preface of HTTP/2: idle strangers."""
    monkeypatch.setattr(listener, "ADMISSION_S", 1.0)
    honest = front.bearer(front.token("reader", "mon"))
    await honest.volumes.ListVolumes(pb.ListVolumesRequest())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=context)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    async with asyncio.timeout(10):
        while await reader.read(1000):
            pass
    writer.close()
    await honest.volumes.ListVolumes(pb.ListVolumesRequest())
    await eventually(lambda: front.gateway.connections == 1)


async def test_guessing_tokens_costs_connections(front: Front) -> None:
    """Each guess is a connection, and none of them reaches grpc."""
    api = front.bearer("zfsilo-" + "0" * 26 + "-" + "0" * 64)
    asked = []
    check = front.gateway.admission.check

    def counted(peer: Peer, digest: str) -> None:
        asked.append(peer.token)
        check(peer, digest)

    front.gateway.admission.check = counted
    for _guess in range(6):
        with refused("UNAUTHENTICATED", "BAD_TOKEN"):
            await api.volumes.ListVolumes(pb.ListVolumesRequest(), wait_for_ready=True, timeout=20)
    assert asked == ["0" * 26] * 6
    assert front.gateway.backend.connections == 0


async def test_strangers_leave_places_to_certificates(tmp_path: Path) -> None:
    """Idle handshakes from many addresses; a new one takes the place of the oldest."""
    few = Limits(tcp=4, handshake=4, anonymous=4, per_peer=2)
    async with front_of(tmp_path, limits=few) as front:
        ends = []
        for number in range(1, 9):
            raw = socket.create_connection(
                ("127.0.0.1", front.port), source_address=(f"127.0.0.{number + 1}", 0)
            )
            ends.append(raw)
        await eventually(lambda: front.gateway.connections >= 4)
        await front.role("reader", "mon").volumes.ListVolumes(pb.ListVolumesRequest(), timeout=5)
        for raw in ends:
            raw.close()


async def test_lines_about_strangers_are_few(front: Front, caplog: Any) -> None:
    for _number in range(100):
        _reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        writer.close()
    await eventually(lambda: front.gateway.connections == 0)
    assert len(caplog.records) <= listener.LINES


async def test_records_without_data_end_a_connection() -> None:
    """Updates of the key, which ssl would read for as long as they come."""
    own, other = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    end = gateway_tls.TlsEnd(own, context)
    with other:
        record = b"\x17\x03\x03\x00\x17" + bytes(23)
        end.barren(len(record))
        for _number in range(gateway_tls.BARREN_BYTES // len(record) - 1):
            end.barren(len(record))
        with pytest.raises(ConnectionAbortedError):
            end.barren(len(record))
    end.close()


def test_new_connections_of_one_peer_are_spread() -> None:
    pace = limits.Pace()
    assert [pace.wait_s("reader", 100.0) for _connection in range(limits.BURST)] == [0] * 40
    waits = [pace.wait_s("reader", 100.0) for _connection in range(20)]
    assert waits[-1] == pytest.approx(20 / limits.PER_S)
    assert pace.wait_s("other", 100.0) == 0
    assert pace.wait_s("reader", 200.0) == 0
    for number in range(3 * limits.MAX_KEYS):
        pace.wait_s(f"peer {number}", 300.0 + number)
    assert pace.wait_s("reader", 10000.0) == 0


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_many_continuations_end_a_connection(chunk: int) -> None:
    """Followed whatever the pieces; frames of other kinds in between start a new count."""
    part = frame(1) + frame(frames.CONTINUATION, b"abc") * frames.MAX_CONTINUATIONS
    follower = frames.Frames()
    calls = bytes(frames.PREFACE_BYTES) + (part + frame(0, bytes(70_000))) * 3
    for at in range(0, len(calls), chunk):
        follower.follow(calls[at : at + chunk])
    follower.follow(part)
    with pytest.raises(ConnectionAbortedError):
        follower.follow(frame(frames.CONTINUATION))


def test_headers_have_a_cost() -> None:
    """Calls and the bytes of their headers cost something, data does not."""
    follower = frames.Frames()
    follower.follow(bytes(frames.PREFACE_BYTES) + frame(0, bytes(5000)) + frame(4))
    assert follower.cost() == 0
    follower.follow(frame(1, bytes(70)) + frame(frames.CONTINUATION, bytes(100)))
    assert follower.cost() == frames.CALL_COST + 70 + frames.HEAD_BYTES + 100
    assert follower.cost() == 0


async def test_headers_have_a_pace(tmp_path: Path, monkeypatch: Any) -> None:
    """A caller with many calls or large headers waits, on all its connections, and nobody else."""
    monkeypatch.setattr(limits, "HEADER_BURST", 16 << 10)
    monkeypatch.setattr(limits, "HEADERS_PER_S", 16 << 10)
    async with front_of(tmp_path) as front:
        token = front.token("reader", "mon")
        first, second = front.bearer(token), front.bearer(token)
        other = front.role("reader", "other")
        for api in (first, second, other):
            await api.volumes.ListVolumes(pb.ListVolumesRequest())
        large = (("x-large", "x" * 7000),)
        before = time.monotonic()
        for _call in range(4):
            await first.volumes.ListVolumes(pb.ListVolumesRequest(), metadata=large)
        waiting = asyncio.ensure_future(second.volumes.ListVolumes(pb.ListVolumesRequest()))
        await other.volumes.ListVolumes(pb.ListVolumesRequest())
        assert not waiting.done()
        await waiting
        assert time.monotonic() - before > 0.5


def frame(kind: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3) + bytes([kind, 0, 0, 0, 0, 1]) + body
