"""The gateway: connections, limits, relaying, and the identity of peers."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.running import made, write_pki
from zfsilod.gateway import acceptor, relay, sockets
from zfsilod.gateway.connections import Connections
from zfsilod.gateway.limits import Limits
from zfsilod.gateway.opening import ACK, PREFACE, SETTINGS, frame
from zfsilod.gateway.sockets import listen_tcp, listen_unix
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.identity import Identity
from zfsilod.security import certificates
from zfsilod.security.tls import TlsFiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


MIB = 1 << 20


FIRST = PREFACE[:3]  # as a client of gRPC begins; a local connection is silent until then


class Behind:
    """A gateway with a plain server behind it, in place of grpc."""

    def __init__(self, directory: Path, limits: Limits | None) -> None:
        tls = TlsFiles(directory / "tls")
        write_pki(tls.files)
        self.gateway = Connections(directory / "private", limits, tls)
        self.gateway.admission.check = lambda _peer, _digest: None
        self._certificate = directory / "client.pem"
        pair = certificates.issue(made("ca"), Identity(kind="user", id="mon", role="reader"))
        self._certificate.write_bytes(pair.key_pem + pair.certificate_pem)
        self.path = directory / "front.sock"
        self.arrived: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.Queue()
        )
        self.names: list[str] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def start(self) -> None:
        async def arrive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            name = writer.get_extra_info("peername")
            self.names.append(f"unix:{name}")
            self.writers.append(writer)
            await self.arrived.put((reader, writer))

        self._servers = [
            await asyncio.start_unix_server(arrive, self.gateway.backend.socket_of(kind), limit=MIB)
            for kind in ("unix", "tcp")
        ]
        self.gateway.listen(listen_unix(self.path))
        listener = listen_tcp("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.gateway.listen(listener)

    async def stop(self) -> None:
        self.gateway.close()
        for server in self._servers:
            server.close()
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)

    async def unix(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(str(self.path), limit=MIB)
        writer.write(FIRST)
        self.writers.append(writer)
        return reader, writer

    async def tcp(
        self, *, stranger: bool = False
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        if not stranger:
            context.load_cert_chain(self._certificate)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, limit=MIB, ssl=context
        )
        self.writers.append(writer)
        return reader, writer

    async def pair(self, kind: str = "unix") -> tuple[Any, Any]:
        """Return both ends of a new connection as reader and writer: near and far."""
        near = await (self.tcp() if kind == "tcp" else self.unix())
        return near, await asyncio.wait_for(self.arrived.get(), 5)

    async def settled_pair(self, kind: str = "unix") -> tuple[Any, Any]:
        """Return the ends of a connection after the settings of HTTP/2: all bytes are relayed."""
        near, far = await self.pair(kind)
        far[1].write(frame(SETTINGS))
        await near[0].readexactly(len(frame(SETTINGS)))
        begin = PREFACE + frame(SETTINGS) + frame(SETTINGS, ACK)
        near[1].write(begin[len(FIRST) if kind == "unix" else 0 :])
        assert await far[0].readexactly(len(begin)) == begin
        return near, far


@asynccontextmanager
async def behind(limits: Limits | None = None) -> AsyncIterator[Behind]:
    with tempfile.TemporaryDirectory(prefix="zfsilo-") as directory:
        built = Behind(Path(directory), limits)
        await built.start()
        try:
            yield built
        finally:
            await built.stop()


@pytest.fixture(autouse=True)
def _short_linger(monkeypatch: Any) -> None:
    monkeypatch.setattr(relay, "LINGER_S", 0.2)


async def eventually(question: Any) -> None:
    async with asyncio.timeout(60):
        while not question():
            await asyncio.sleep(0.01)


async def test_a_tag_identifies_the_peer() -> None:
    async with behind() as built:
        _reader, unix = await built.unix()
        await eventually(lambda: len(built.names) == 1)
        peer = built.gateway.backend.peer(built.names[0])
        assert peer is not None
        assert (peer.kind, peer.uid) == ("unix", os.getuid())
        assert set(peer.groups) == {os.getgid(), *os.getgroups()}
        assert peer.address == f"pid {os.getpid()}"
        _reader, tcp = await built.tcp()
        await eventually(lambda: len(built.names) == 2)
        peer = built.gateway.backend.peer(built.names[1])
        assert peer is not None
        assert (peer.kind, peer.address, peer.uid) == ("tcp", "127.0.0.1", -1)
        assert built.names[0] != built.names[1]
        unix.close()
        tcp.close()
        await eventually(lambda: built.gateway.backend.peer(built.names[0]) is None)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_bytes_arrive_whole_both_ways(kind: str) -> None:
    async with behind() as built:
        (reader, writer), (far_reader, far_writer) = await built.settled_pair(kind)
        there, back = secrets.token_bytes(8 * MIB), secrets.token_bytes(8 * MIB)

        async def send(out: asyncio.StreamWriter, data: bytes) -> None:
            out.write(data)
            await out.drain()

        got = await asyncio.gather(
            far_reader.readexactly(len(there)),
            reader.readexactly(len(back)),
            send(writer, there),
            send(far_writer, back),
        )
        assert (got[0], got[1]) == (there, back)
        writer.close()
        far_writer.close()


async def test_a_slow_reader_holds_back_the_writer() -> None:
    async with behind() as built:
        (_reader, writer), (far_reader, far_writer) = await built.settled_pair()
        far_writer.transport.pause_reading()
        writer.write(b"x" * 64 * MIB)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.3)
        left = writer.transport.get_write_buffer_size()
        assert left > 32 * MIB  # the gateway buffers one chunk, the sockets the rest
        assert built.gateway.buffered_bytes <= relay.CHUNK_BYTES
        far_writer.transport.resume_reading()
        assert len(await far_reader.readexactly(64 * MIB)) == 64 * MIB
        writer.close()
        far_writer.close()


async def test_one_half_may_end_before_the_other() -> None:
    async with behind() as built:
        (reader, writer), (far_reader, far_writer) = await built.settled_pair()
        writer.write(b"question")
        writer.write_eof()
        assert await far_reader.read() == b"question"
        far_writer.write(b"answer")
        far_writer.close()
        assert await reader.read() == b"answer"
        writer.close()
        await eventually(lambda: built.gateway.connections == 0)


async def test_a_half_closed_connection_is_closed() -> None:
    async with behind() as built:
        (reader, writer), (far_reader, far_writer) = await built.pair()
        far_writer.close()
        assert await reader.read() == b""
        await eventually(lambda: built.gateway.connections == 0)
        writer.close()
        assert await far_reader.read() == b""


async def test_a_reset_connection_is_closed() -> None:
    async with behind() as built:
        with socket.create_connection(("127.0.0.1", built.port)) as client:
            await eventually(lambda: built.gateway.connections == 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await eventually(lambda: built.gateway.connections == 0)


async def test_connections_are_limited() -> None:
    limits = Limits(unix=2, tcp=3, per_peer=2)
    async with behind(limits) as built:
        kept = [await built.tcp(stranger=True) for _number in range(2)]
        await eventually(lambda: built.gateway.connections == 2)
        with pytest.raises(ConnectionError):
            await built.tcp()  # of the same address
        for _reader, writer in kept:
            writer.close()
        await eventually(lambda: built.gateway.connections == 0)
        kept = [await built.tcp() for _number in range(2)]
        await eventually(lambda: built.gateway.connections == 2)
        reader, beyond = await built.tcp()  # of the same certificate
        assert await reader.read() == b""
        beyond.close()
        kept += [await built.unix() for _number in range(2)]
        await eventually(lambda: built.gateway.connections == 4)
        reader, more = await built.unix()
        with suppress(BrokenPipeError):  # of the first bytes
            assert await reader.read() == b""
        for _reader, writer in kept:
            writer.close()
        await eventually(lambda: built.gateway.connections == 0)
        assert not built.gateway.backend.count.by_peer
        again = await built.tcp()
        await eventually(lambda: len(built.names) == 5)
        assert built.gateway.connections == 1
        for writer in (more, again[1]):
            writer.close()


async def test_without_a_server_connections_are_dropped() -> None:
    with tempfile.TemporaryDirectory(prefix="zfsilo-") as directory:
        gateway = Connections(Path(directory) / "private", None, TlsFiles(Path(directory)))
        gateway.listen(listen_unix(Path(directory) / "front.sock"))
        reader, writer = await asyncio.open_unix_connection(f"{directory}/front.sock")
        assert await reader.read() == b""
        assert gateway.connections == 0
        writer.close()
        gateway.close()


async def test_without_descriptors_it_waits_and_continues(monkeypatch: Any) -> None:
    monkeypatch.setattr(acceptor, "ACCEPT_PAUSE_S", 0.1)

    class Exhausted:
        def __init__(self, real: socket.socket) -> None:
            self.real, self.refusals = real, 2

        def accept(self) -> Any:
            if self.refusals:
                self.refusals -= 1
                raise OSError(24, "Too many open files")
            return self.real.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def __hash__(self) -> int:
            return 1

    with tempfile.TemporaryDirectory(prefix="zfsilo-") as directory:
        path = Path(directory) / "front.sock"
        gateway = Connections(Path(directory) / "private", None, TlsFiles(Path(directory)))
        listener = Exhausted(listen_unix(path))
        gateway.listen(listener)  # type: ignore[arg-type]
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert await reader.read() == b""  # accepted at last; no server is behind the gateway
        assert listener.refusals == 0
        writer.close()
        gateway.close()


def test_the_private_directory_is_private(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "private"
    directory.mkdir(parents=True, mode=0o755)
    (directory / "tcp.sock").touch()
    Connections(directory, None, TlsFiles(tmp_path))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert list(directory.iterdir()) == []


def test_a_stale_socket_is_replaced() -> None:
    with tempfile.TemporaryDirectory(prefix="zfsilo-") as directory:
        path = Path(directory) / "front.sock"
        listen_unix(path).close()
        with listen_unix(path, mode=0o600):
            assert path.stat().st_mode & 0o777 == 0o600
            with pytest.raises(FailedPrecondition):
                listen_unix(path)
        path.unlink()
        path.touch()
        with pytest.raises(FailedPrecondition):
            listen_unix(path)


def test_ipv6_addresses() -> None:
    try:
        listener = listen_tcp("::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener, socket.create_connection(("::1", listener.getsockname()[1])) as client:
        accepted, _address = listener.accept()
        with accepted:
            assert sockets.peer_of(accepted, "tcp").address == "::1"
        assert client


INHERIT = """
import os, sys
os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), "3"
os.environ["LISTEN_FDNAMES"] = "zfsilod.socket:zfsilod-tcp.socket:zfsilod-csi.socket"
from zfsilod.gateway.sockets import inherited
print([(s.family.name, s.fileno(), name) for s, name in inherited()])
"""


def test_inherited_sockets() -> None:
    pytest.importorskip("systemd.daemon")
    with tempfile.TemporaryDirectory(prefix="zfsilo-") as directory, ExitStack() as stack:
        unix = stack.enter_context(listen_unix(Path(directory) / "s"))
        tcp = stack.enter_context(listen_tcp("127.0.0.1", 0))
        # As systemd passes them: descriptors 3, 4 and 5.
        actions = f"import os; os.dup2({unix.fileno()}, 103); os.dup2({tcp.fileno()}, 104)\n"
        actions += "os.dup2(103, 3); os.dup2(104, 4); os.dup2(103, 5)\n"
        done = subprocess.run(
            [sys.executable, "-c", actions + INHERIT],
            pass_fds=(unix.fileno(), tcp.fileno()),
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.strip() == (
        "[('AF_UNIX', 3, 'zfsilod.socket'), ('AF_INET', 4, 'zfsilod-tcp.socket'), "
        "('AF_UNIX', 5, 'zfsilod-csi.socket')]"
    )


async def test_a_forged_name_is_refused() -> None:
    async with behind() as built:
        await built.pair()
        real = built.names[0]
        assert built.gateway.backend.peer(real) is not None
        directory = real.rpartition("/")[0]
        for forged in (f"{directory}/1", real + "0", directory, "unix:", "", real[5:-1]):
            assert built.gateway.backend.peer(forged) is None


async def test_no_name_that_others_can_take_first() -> None:
    """Abstract names have no owner, and /proc/net/unix shows them to everybody."""

    def abstract_names() -> set[str]:
        lines = Path("/proc/net/unix").read_text().splitlines()
        return {line.rpartition(" ")[2] for line in lines if " @" in line}

    before = abstract_names()
    async with behind() as built:
        await built.pair()
        await built.pair("tcp")
        assert {name for name in abstract_names() - before if "zfsilo" in name} == set()
