"""gRPC client of the servers that this host is joined to: implements the Protocol Servers."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from typing import TYPE_CHECKING, Any, Literal

import grpc
from zfsilo.v1 import host_pb2, service_pb2, volume_pb2

from zfsilod.model.errors import NotFound, Unauthenticated, Unavailable, ZfsiloError
from zfsilod.model.features import TLS, check_feature
from zfsilod.model.names import join_portal, portal_parts, split_address
from zfsilod.model.replica import ReplicaFacts
from zfsilod.security.join_file import expiry
from zfsilod.wire import convert, enums, status
from zfsilod.wire.channel import tls_channel_aio
from zfsilod.wire.plain import encode, plain
from zfsilod.wire.server_answers import check_chap, check_connection, check_portals, check_replica
from zfsilod.wire.stub import Api

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from zfsilod.engine.steps.filesystem import Reported
    from zfsilod.model.chap import Chap
    from zfsilod.model.connection import Connection
    from zfsilod.model.records import Host, Publication, Snapshot, Volume
    from zfsilod.model.words import Transport
    from zfsilod.security.join_file import Access

MACHINE_METADATA = "zfsilo-machine"
CALL_DEADLINE_S = 30.0  # a report is an operation on the server
ACCESS = ("address", "tls_name", "authority", "certificate", "key", "token")
PAGE_SIZE, MAX_PAGES = 1000, 100


class StorageServers:
    """The joined servers by name, with a channel to each server after its first call.

    `find` reads a server's join file at every call: a new server or certificate is used at once.
    """

    def __init__(
        self,
        find: Callable[[str], Access | None],
        machine: str = "",
        recorded: Callable[[str], Collection[str]] = lambda _server: (),
    ) -> None:
        """Call as the host of the join files, from this machine: the hash of its id.

        `recorded` returns the portals of a server that this host has attachments at.
        """
        self._find = find
        self._recorded = recorded
        self._metadata = ((MACHINE_METADATA, machine),) if machine else ()
        self._channels: dict[str, Any] = {}
        self._configs: dict[str, Access] = {}
        self._refused: dict[str, str] = {}  # by server: why its last answer was no admission
        self._closing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
        if self._closing:
            await asyncio.wait(self._closing)

    def problem(self, server: str) -> str:
        """Return why a server does not accept this host, as a sentence; "": it did at last."""
        try:
            access = self._config(server)
            if access.certificate and expiry(access.certificate) < time.time():
                return f"the certificate of this host for server {server} has expired"
        except ZfsiloError as error:
            return error.message
        return self._refused.get(server, "")

    async def fetch(self, server: str, volume: str) -> tuple[Connection, Chap]:
        """Return the login parameters of a volume that is published to this host."""
        request = volume_pb2.FetchConnectionRequest(name=f"volumes/{volume}")
        answer = await self.call(server, self._api(server).volumes.FetchConnection, request)
        connection = check_connection(server, volume, answer, self._config(server).iqn_prefix)
        portals = await self.usable_portals(server, connection.portals)
        chap = check_chap(server, volume, answer.chap, tls=connection.tls)
        return connection.but(portals=portals), chap

    async def publish(
        self,
        server: str,
        volume: str,
        *,
        client_operation: str,
        transport: Transport | Literal[""] = "",
        tls: bool = False,
    ) -> None:
        """Publish a volume to this host, on behalf of an operation of this host.

        Raises FailedPrecondition (OLDER_VERSION) for TLS and a server that does not know it.
        """
        if tls:
            info = await self._info(server)
            check_feature(info.features, TLS, f"server {server}")
        message = volume_pb2.PublishVolumeRequest(
            name=f"volumes/{volume}", client_operation=client_operation, tls=tls
        )
        if transport:
            message.transport = enums.TRANSPORTS.number(transport)
        await self.call(server, self._api(server).volumes.PublishVolume, message)

    async def release(self, server: str, volume: str, *, client_operation: str) -> None:
        """Unpublish a volume that an operation of this host published."""
        message = volume_pb2.UnpublishVolumeRequest(
            name=f"volumes/{volume}", client_operation=client_operation
        )
        await self.call(server, self._api(server).volumes.UnpublishVolume, message)

    async def report(self, step: Reported, operation: str) -> None:
        """Report the filesystem that an operation of this host creates on a volume."""
        message = volume_pb2.ReportFilesystemRequest(
            name=f"volumes/{step.volume}",
            epoch=step.epoch,
            filesystem=volume_pb2.Filesystem(
                state=enums.FILESYSTEM_STATES.number(step.state),
                type=step.type,
                uuid=step.uuid,
                operation=operation,
            ),
        )
        await self.call(step.server, self._api(step.server).volumes.ReportFilesystem, message)

    async def register(self, server: str, host: Host, *, validate_only: bool = False) -> bool:
        """Register this host on a server; tell whether its record there changed."""
        request = host_pb2.RegisterHostRequest(host=convert.host(host), validate_only=validate_only)
        answer = await self.call(server, self._api(server).hosts.RegisterHost, request)
        return not validate_only and bool(answer.operation.name)

    async def publications(self, server: str) -> list[Publication]:
        """Return the publications to this host."""
        publications: list[Publication] = []
        request = volume_pb2.ListPublicationsRequest(page_size=PAGE_SIZE)
        for _page in range(MAX_PAGES):
            answer = await self.call(server, self._api(server).volumes.ListPublications, request)
            publications += map(convert.read_publication, answer.publications)
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                break
        return publications

    async def portals(self, server: str, transport: Transport, *, tls: bool) -> tuple[str, ...]:
        """Return the present portals of a server; () of one that does not name them."""
        answer = await self._info(server)
        if transport == "ISCSI":
            named = answer.portals
        else:
            named = answer.nvme_tls_portals if tls else answer.nvme_portals
        return await self.usable_portals(server, check_portals(server, named))

    async def _info(self, server: str) -> service_pb2.ServerInfo:
        request = service_pb2.GetServerInfoRequest()
        info: service_pb2.ServerInfo = await self.call(
            server, self._api(server).service.GetServerInfo, request
        )
        return info

    async def replica(self, server: str, volume: str, uid: str, *, wait: bool) -> ReplicaFacts:
        """Return what a peer has of a volume; `wait`: when its running receive has ended."""
        request = volume_pb2.GetReplicaRequest(name=f"volumes/{volume}", uid=uid, wait=wait)
        method = self._api(server).volumes.GetReplica
        try:
            answer = await self.call(server, method, request)
        except NotFound as error:
            if error.reason == "NO_SERVER":
                raise
            return ReplicaFacts()
        return check_replica(server, volume, answer)

    def offer(
        self, volume: Volume, snapshot: Snapshot, base_guid: str, *, raw: bool, attempt: str
    ) -> str:
        """Return the request by which a peer receives a snapshot, as JSON."""
        offered = convert.offered(volume, snapshot, base_guid, raw=raw, attempt=attempt)
        return encode(plain(offered)).decode()

    def refusal(self, server: str, body: str, status_code: int) -> ZfsiloError:
        """Return the error in the response of HTTP by which a peer refused that request."""
        raised = status.from_json(body, status_code)
        facts = raised.facts | {"server": server}
        return type(raised)(f"server {server}: {raised.message}", reason=raised.reason, **facts)

    def access(self, server: str) -> dict[str, str]:
        """Return address, tls_name, authority, certificate, key and token for a server."""
        access = self._config(server)
        return {name: getattr(access, name) for name in ACCESS}

    async def rotate(self, server: str, volume: str) -> None:
        """Replace the secrets of this host; its session continues."""
        message = service_pb2.RotateSecretsRequest(volume=f"volumes/{volume}")
        await self.call(server, self._api(server).service.RotateSecrets, message)

    async def usage(self, server: str, volume: str, *, timeout_s: float) -> dict[str, int]:
        """Return the space that a volume published to this host uses in its pool, in bytes."""
        request = volume_pb2.StatsVolumeRequest(name=f"volumes/{volume}")
        method = self._api(server).volumes.StatsVolume
        answer = await self.call(server, method, request, timeout_s)
        return {"used": answer.used_bytes, "referenced": answer.referenced_bytes}

    def _api(self, server: str) -> Api:
        config = self._config(server)
        if self._configs.get(server) != config:
            if old := self._channels.pop(server, None):
                # Running calls end first; without this the channel would connect again for ever.
                closing = asyncio.ensure_future(old.close(CALL_DEADLINE_S))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            self._configs[server] = config
            self._refused.pop(server, None)
            self._channels[server] = tls_channel_aio(config)
        return Api(self._channels[server])

    def _config(self, server: str) -> Access:
        access = self._find(server)
        if access is None:
            raise NotFound(
                f"server {server[:128]} is not configured: run zfsiloctl join",
                reason="NO_SERVER",
                server=server[:128],
            )
        return access

    async def call(
        self, server: str, method: Any, request: Any, timeout_s: float = CALL_DEADLINE_S
    ) -> Any:
        """Call a method of a server, and raise the errors that the server raised.

        A call that fails with its connection is repeated once over a new connection: the old one
        may date from before a power failure of the server, and every method is idempotent.
        """
        try:
            try:
                answer = await method(request, timeout=timeout_s, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or status.is_ours(error):
                    raise
                answer = await method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            failure = self._translated(server, error)
            if isinstance(failure, Unauthenticated):
                self._refused[server] = failure.message
            raise failure from None
        self._refused.pop(server, None)
        return answer

    def _translated(self, server: str, error: grpc.aio.AioRpcError) -> ZfsiloError:
        raised = status.from_status(error)
        address = self._config(server).address
        if not status.is_ours(error) and error.code() == grpc.StatusCode.UNAVAILABLE:
            where, facts = f"server {server} ({address})", {"server": server, "address": address}
            return status.connection_error(where, raised.message, **facts)
        if not status.is_ours(error) or error.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        ):
            return Unavailable(
                f"server {server} ({address}) did not answer: {raised.message}",
                reason="SERVER_UNAVAILABLE",
                server=server,
                address=address,
            )
        facts = raised.facts | {"server": server}
        sentence = f"server {server}: {raised.message}"
        if isinstance(raised, NotFound) and facts.get("volume"):
            # It does not tell whether a volume exists that this host may not use.
            sentence = f"server {server} has no volume {facts['volume']} for this host"
        return type(raised)(sentence, reason=raised.reason, **facts)

    async def usable_portals(self, server: str, portals: tuple[str, ...]) -> tuple[str, ...]:
        """Return portals with wildcard addresses replaced by the server's own address.

        If its name has several, an address of an attachment stays while the name has it: name
        servers change the order of their answers, and each change would move the attachments.
        """
        usable = []
        for portal in portals:
            host, port = portal_parts(portal)
            if _is_wildcard(host):
                own, _port = split_address(self._config(server).address)
                host = await self._resolve(server, own, only_v4="." in host)
            usable.append(join_portal(host, port))
        return tuple(dict.fromkeys(usable))

    async def _resolve(self, server: str, name: str, *, only_v4: bool) -> str:
        family = socket.AF_INET if only_v4 else socket.AF_UNSPEC
        loop = asyncio.get_running_loop()
        try:
            addresses = await loop.getaddrinfo(name, None, family=family, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Unavailable(
                f"cannot resolve {name}, the address of server {server}: {error.strerror}",
                reason="SERVER_UNAVAILABLE",
                server=server,
                address=name,
            ) from None
        family = addresses[0][0]  # the one that the resolver prefers
        own = [str(address[4][0]) for address in addresses if address[0] == family]
        in_use = {portal_parts(portal)[0] for portal in self._recorded(server)}
        return min(in_use & set(own), default=own[0])


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
