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
from zfsilod.gateway import listener
from zfsilod.model.identity import PeerKind
from zfsilod.wire.stub import Api

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.running import Front


async def test_connections_that_bypass_the_gateway_are_refused(front: Front) -> None:
    for kind in get_args(PeerKind):
        path, options = front.gateway.socket_of(kind), [("grpc.default_authority", "localhost")]
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
