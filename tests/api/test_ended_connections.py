"""The gateway logs why it drops or closes a connection, whatever the way in which it ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from typing import TYPE_CHECKING, Any

import pytest
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import front_of
from tests.api.test_gateway import eventually
from tests.api.test_gateway_grpc import frame
from zfsilod.gateway import frames, listener, relay
from zfsilod.gateway.limits import Limits
from zfsilod.gateway.tls import HANDSHAKE_BYTES
from zfsilod.model.identity import Peer
from zfsilod.model.records import Revocation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.api.running import Front

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
RESET = struct.pack("ii", 1, 0)
HELLO = b"\x16\x03\x01"  # a TLS record of a handshake: its length follows


def lines(caplog: Any) -> list[str]:
    return [r.getMessage() for r in caplog.records if " a connection" in r.getMessage()]


async def logged(caplog: Any, reason: str) -> None:
    """Wait for a line that ends with this reason; none has an empty one."""
    with contextlib.suppress(TimeoutError):
        await eventually(lambda: any(line.endswith(reason) for line in lines(caplog)))
    assert any(line.endswith(reason) for line in lines(caplog)), lines(caplog)
    assert not [line for line in lines(caplog) if line.endswith((": ", ":"))]


async def plain(front: Front, data: bytes = b"") -> socket.socket:
    """Return a TCP connection that has sent bytes."""
    end = socket.create_connection(("127.0.0.1", front.port))
    end.setblocking(False)
    with contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_sendall(end, data)
    return end


async def certified(front: Front, path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return an admitted connection with the certificate of a reader."""
    access = front.certified("reader", "mon")
    pem = path / "mon.pem"
    pem.write_text(access.certificate + access.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(pem)
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=context)
    writer.write(PREFACE + SETTINGS)
    await reader.read(1)
    return reader, writer


async def speak_http(front: Front) -> None:
    (await plain(front, b"GET / HTTP/1.0\r\n\r\n")).close()


async def leave(front: Front) -> None:
    (await plain(front)).close()


async def reset(front: Front) -> None:
    end = await plain(front, HELLO)
    await eventually(lambda: front.gateway.connections == 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    end.close()


async def talk_too_much(front: Front) -> None:
    record = HELLO + (16000).to_bytes(2) + b"\x01\x00\xff\xff" + bytes(16000 - 4)
    end = await plain(front, record * (HANDSHAKE_BYTES // 16000 + 2))
    end.close()


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (speak_http, ": TLS: http request"),
        (leave, ": it ended before the TLS handshake was complete"),
        (reset, ": Connection reset by peer"),
        (talk_too_much, f": a TLS handshake of more than {HANDSHAKE_BYTES} bytes"),
    ],
)
async def test_the_end_of_a_stranger_has_a_reason(
    front: Front, caplog: Any, act: Callable[[Front], Awaitable[None]], reason: str
) -> None:
    caplog.set_level("INFO")
    await act(front)
    await eventually(lambda: lines(caplog))
    await logged(caplog, reason)


async def test_silence_and_a_lack_of_places_are_reasons(
    tmp_path: Path, caplog: Any, monkeypatch: Any
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(listener, "ADMISSION_S", 0.5)
    async with front_of(tmp_path, limits=Limits(handshake=1)) as front:
        first = await plain(front)
        await eventually(lambda: front.gateway.connections == 1)
        second = await plain(front)
        await logged(caplog, ": closed to make room for newer ones")
        await logged(caplog, ": not admitted within 0.5 s")
        first.close()
        second.close()


async def test_a_client_of_an_unknown_authority(front: Front, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    with contextlib.suppress(OSError):
        access = front.certified("reader", "mon", by="other")
        pem = tmp_path / "other.pem"
        pem.write_text(access.certificate + access.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(pem)
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=context)
        await reader.read()
        writer.close()
    await logged(caplog, ": TLS: unable to get local issuer certificate")


async def test_abuse_of_an_admitted_connection_is_named(
    front: Front, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level("INFO")
    _reader, writer = await certified(front, tmp_path)
    writer.write(frame(1) + frame(frames.CONTINUATION) * (frames.MAX_CONTINUATIONS + 1))
    await logged(caplog, ": too many CONTINUATION frames")
    writer.close()


@pytest.mark.parametrize(("ended", "side"), [(0, "the client"), (1, "zfsilod")])
async def test_one_side_that_stays_is_named(monkeypatch: Any, ended: int, side: str) -> None:
    monkeypatch.setattr(relay, "LINGER_S", 0.1)
    reasons: list[str] = []
    near, far = socket.socketpair(), socket.socketpair()
    ends = relay.PlainEnd(near[0]), relay.PlainEnd(far[0])
    peer = Peer(kind="tcp", address="127.0.0.1")
    connection = relay.RelayedConnection(peer, *ends, closed=reasons.append)
    (near, far)[ended][1].shutdown(socket.SHUT_WR)
    await eventually(lambda: reasons)
    assert reasons == [f"{side} has ended it, the other side has not within 0.1 s"]
    connection.close("again")
    assert len(reasons) == 1
    for own in (near[1], far[1]):
        own.close()


async def test_a_revoked_identity_is_named(front: Front, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    api = front.role("reader", "mon")
    await api.volumes.ListVolumes(pb.ListVolumesRequest())
    front.write(lambda txn: txn.put(Revocation(id="user/mon", revoked_at=1 << 40)))
    with pytest.raises(Exception, match="revoked"):
        await api.volumes.ListVolumes(pb.ListVolumesRequest())
    await logged(caplog, ": its identity was revoked")


async def test_an_orderly_end_needs_no_line(front: Front, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    _reader, writer = await certified(front, tmp_path)
    writer.close()
    await eventually(lambda: front.gateway.connections == 0)
    assert lines(caplog) == []


async def test_a_restart_of_zfsilod_is_named(
    front: Front, tmp_path: Path, caplog: Any, monkeypatch: Any
) -> None:
    caplog.set_level("INFO")
    _reader, writer = await certified(front, tmp_path)
    monkeypatch.setattr(
        "zfsilod.gateway.packets.receive", lambda _link: None
    )  # the end of the link
    (await plain(front)).close()
    await logged(caplog, ": zfsilod has ended or restarted")
    writer.close()
