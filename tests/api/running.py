"""A zfsilod in one process behind its gateway, server and client in one."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from zfsilo.v1 import volume_pb2 as pb

from tests.channel import Streaming, unix_channel_aio
from tests.service_fixture import SETTINGS, STORE_BYTES, ServiceFixture, service_fixture
from zfsilod.api.rpc.call_limits import MAX_CALLS
from zfsilod.api.servers import ApiServers
from zfsilod.gateway.connections import Connections
from zfsilod.gateway.sockets import listen_tcp, listen_unix
from zfsilod.model.identity import Identity
from zfsilod.security import certificates
from zfsilod.security.authentication import new_token
from zfsilod.security.join_file import Access, Files
from zfsilod.security.tls import TlsFiles
from zfsilod.wire import status
from zfsilod.wire.channel import tls_channel_aio
from zfsilod.wire.storage_server import StorageServers
from zfsilod.wire.stub import Api

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from zfsilod.gateway.limits import Limits
    from zfsilod.model.errors import ZfsiloError
    from zfsilod.model.identity import Role
    from zfsilod.model.records import Operation
    from zfsilod.model.settings import Settings
    from zfsilod.storage.transaction import Transaction

GIB = 1 << 30
UUID = "6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11"
TAKE = "hosts/take"
DATA = "volumes/data"
GIVE = Identity(kind="host", id="give", role="host")
MADE: dict[str, certificates.KeyPair] = {}


class Front:
    """The parts of a zfsilod, channels to it, and shortcuts for tests."""

    def __init__(
        self,
        fixture: ServiceFixture,
        directory: Path,
        state: Path,
        limits: Limits | None,
        max_calls: int = MAX_CALLS,
    ) -> None:
        self.fixture = fixture
        self.service = fixture.service
        self.tls = TlsFiles(state / "tls")
        self.service.health.wishes = state / "etc/volumes.d"
        self.service.health.certificate = self.tls.files.host
        write_pki(self.tls.files)
        self.gateway = Connections(directory / "private", limits, self.tls, fresh_s=0)
        self.path = directory / "zfsilod.sock"
        self.node_path = directory / "csi.sock"
        self.server = ApiServers(self.service, self.gateway, self.tls.files, max_calls=max_calls)
        self.channels: list[Any] = []
        self.relays: list[Callable[[], Any]] = []
        self.port = 0

    async def start(self) -> None:
        await self.server.start()
        self.gateway.listen(listen_unix(self.path, mode=0o666))
        self.gateway.listen(listen_unix(self.node_path), node=True)
        listener = listen_tcp("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.gateway.listen(listener)

    async def stop(self) -> None:
        for channel in self.channels:
            await channel.close()
        for end in self.relays:
            end()
        await self.server.stop(0.2)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def root(self) -> Api:
        """Return the interface over the unix socket, as administrator."""
        return Api(self.keep(unix_channel_aio(self.path)))

    def early(self) -> Api:
        """Return the same with response streams, whose initial metadata arrives early."""
        return Api(Streaming(self.keep(unix_channel_aio(self.path))))

    def node(self) -> Api:
        """Return the interface over the socket of the CSI plugin."""
        return Api(self.keep(unix_channel_aio(self.node_path)))

    def bearer(self, token: str) -> Api:
        """Return the interface over TLS with a token."""
        return self.as_(self.access(token=token))

    def role(self, role: Role, subject: str) -> Api:
        """Return the interface over TLS with a new certificate for a role."""
        return self.as_(self.certified(role, subject))

    def as_(self, access: Access) -> Api:
        """Return the interface over TLS with the credentials of a join file."""
        return Api(self.keep(tls_channel_aio(access)))

    def channel_as(self, access: Access) -> Any:
        """Return a channel over TLS with the credentials of a join file."""
        return self.keep(tls_channel_aio(access))

    def certified(self, role: str, subject: str, *, days: int = 1, by: str = "ca") -> Access:
        """Return a join file with a new certificate."""
        kind: Any = "host" if role == "host" else "user"
        identity = Identity(kind=kind, id=subject, role=role)
        pair = certificates.issue(made(by), identity, days=days)
        return self.access(certificate=pair.certificate_pem.decode(), key=pair.key_pem.decode())

    def access(self, **fields: str) -> Access:
        """Return a join file for this server; without fields it has no credentials."""
        authority = made("ca").certificate_pem.decode()
        known = {"name": "give", "address": self.address, "tls_name": "give.zfsilo"}
        return Access(**(known | {"authority": authority} | fields))

    def token(self, role: Role, subject: str) -> str:
        token, text = new_token(role, subject)
        self.write(lambda txn: txn.put(token))
        return text

    def servers(self, subject: str = "take", address: str = "") -> StorageServers:
        """Return the client of this server, with the credentials of a host."""
        access = self.certified("host", subject)
        access.address = address or self.address
        peer = self.certified("replica", "give")
        peer.name, peer.address = "peer", access.address
        return StorageServers({"give": access, "peer": peer}.get)

    def write(self, change: Callable[[Transaction], Any]) -> Any:
        with self.service.context.store.write() as txn:
            return change(txn)

    def read(self, question: Callable[[Transaction], Any]) -> Any:
        with self.service.context.store.read() as txn:
            return question(txn)

    def keep(self, channel: Any) -> Any:
        self.channels.append(channel)
        return channel


@asynccontextmanager
async def front_of(
    directory: Path,
    settings: Settings = SETTINGS,
    limits: Limits | None = None,
    *,
    store_bytes: int = STORE_BYTES,
    max_calls: int = MAX_CALLS,
) -> AsyncIterator[Front]:
    """Run zfsilod; its sockets are in a directory with a short name."""
    sockets = Path(tempfile.mkdtemp(prefix="zfsilo-"))
    try:
        async with service_fixture(directory, settings, store_bytes=store_bytes) as fixture:
            front = Front(fixture, sockets, directory, limits, max_calls)
            await front.start()
            servers = front.servers()
            fixture.service.context.servers = servers
            try:
                yield front
            finally:
                fixture.launcher.gate.set()
                await servers.close()
                await front.stop()
    finally:
        shutil.rmtree(sockets)


class Refusal:
    """The error of `with refused(...) as refusal`, as a client sees it."""

    error: ZfsiloError
    raw: Any


class refused:
    """Expect that a call is refused with a code and a reason, as pytest.raises does."""

    def __init__(self, code: str, reason: str = "") -> None:
        self.code = code
        self.reason = reason
        self.refusal = Refusal()

    def __enter__(self) -> Refusal:
        return self.refusal

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        assert error is not None, f"not refused; expected {self.code}"
        if not isinstance(error, grpc.aio.AioRpcError):
            return False
        self.refusal.raw, self.refusal.error = error, status.from_status(error)
        assert error.code().name == self.code, error.details()
        assert self.reason in ("", self.refusal.error.reason), self.refusal.error.reason
        return True


def made(name: str) -> certificates.KeyPair:
    """Return one certificate for all tests: of host give, or an authority of another name."""
    if name not in MADE:
        if name == "give":
            MADE[name] = certificates.issue(made("ca"), GIVE, ("localhost", "127.0.0.1"))
        else:
            MADE[name] = certificates.make_authority(name)
    return MADE[name]


def write_pki(files: Files) -> None:
    """Write the files that `zfsiloctl pki init` writes."""
    files.write_authority(made("ca"))
    files.write_host(made("give"))


def create(volume_id: str = "data", **fields: Any) -> pb.CreateVolumeRequest:
    """Return a request for a volume of 1 GiB that host take may publish to itself."""
    known: dict[str, Any] = {"capacity_bytes": GIB, "hosts": ["take"]}
    volume = pb.Volume(**(known | fields))
    return pb.CreateVolumeRequest(volume_id=volume_id, volume=volume)


def publish(**fields: Any) -> pb.PublishVolumeRequest:
    """Return a request to publish volume data to host take."""
    return pb.PublishVolumeRequest(**({"name": DATA, "host": TAKE} | fields))


def connect(**fields: Any) -> pb.ConnectVolumeRequest:
    """Return a request to connect volume data of server give."""
    return pb.ConnectVolumeRequest(**({"server": "give", "volume": "data"} | fields))


def operations(front: Front) -> list[Operation]:
    """Return all operations in the store."""
    from zfsilod.model.records import Operation

    return front.read(lambda txn: list(txn.scan(Operation)))  # type: ignore[no-any-return]
