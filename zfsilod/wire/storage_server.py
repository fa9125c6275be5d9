"""The storage hosts that this consumer knows, asked over TLS as this host: service.Servers."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

import grpc
from zfsilo.v1 import host_pb2, service_pb2, volume_pb2

from zfsilod.model.chap import Chap
from zfsilod.model.connection import Connection
from zfsilod.model.errors import NotFound, Unavailable, ZfsiloError
from zfsilod.model.names import portal_parts, split_address
from zfsilod.wire import convert, status
from zfsilod.wire.channel import tls_channel_aio
from zfsilod.wire.stub import Api

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.engine.steps.filesystem import Reported
    from zfsilod.model.records import Host, Publication
    from zfsilod.security.join_file import Access

CALL_DEADLINE_S = 30.0  # a report is an operation of its own over there
PAGE, MAX_PAGES = 1000, 100


class Servers:
    """The configured servers by name, and a channel to each that was ever asked.

    `find` reads a server's file anew, so one that was joined, or a certificate that was renewed, a
    moment ago is known.
    """

    def __init__(self, find: Callable[[str], Access | None]) -> None:
        self._find = find
        self._channels: dict[str, Any] = {}
        self._reached: dict[str, Access] = {}

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    async def fetch(self, server: str, volume: str) -> tuple[Connection, Chap]:
        """Ask how to log in to a volume that is published to this host."""
        request = volume_pb2.FetchConnectionRequest(name=f"volumes/{volume}")
        answer = await self._call(server, self._api(server).volumes.FetchConnection, request)
        portals = await self._portals(server, tuple(answer.portals))
        chap = answer.chap
        return _connection(volume, answer, portals), Chap(
            username=chap.username,
            password=chap.password,
            mutual_username=chap.mutual_username,
            mutual_password=chap.mutual_password,
        )

    async def publish(self, server: str, volume: str, *, client_operation: str) -> None:
        """Publish a volume to this host, in the name of an operation of ours."""
        message = volume_pb2.PublishVolumeRequest(
            name=f"volumes/{volume}", client_operation=client_operation
        )
        await self._call(server, self._api(server).volumes.PublishVolume, message)

    async def release(self, server: str, volume: str, *, client_operation: str) -> None:
        """Take back what an operation of ours published."""
        message = volume_pb2.UnpublishVolumeRequest(
            name=f"volumes/{volume}", client_operation=client_operation
        )
        await self._call(server, self._api(server).volumes.UnpublishVolume, message)

    async def report(self, step: Reported, operation: str) -> None:
        """Report what an operation of ours does with the filesystem on a volume."""
        message = volume_pb2.ReportFilesystemRequest(
            name=f"volumes/{step.volume}",
            epoch=step.epoch,
            filesystem=volume_pb2.Filesystem(
                state=convert.FILESYSTEM_STATES.number(step.state),
                type=step.type,
                uuid=step.uuid,
                operation=operation,
            ),
        )
        await self._call(step.server, self._api(step.server).volumes.ReportFilesystem, message)

    async def register(self, server: str, host: Host) -> None:
        """Tell a server who we are: our names, addresses, labels and limit."""
        request = host_pb2.RegisterHostRequest(host=convert.host(host))
        await self._call(server, self._api(server).hosts.RegisterHost, request)

    async def publications(self, server: str) -> list[Publication]:
        """Ask what is published to this host."""
        found: list[Publication] = []
        request = volume_pb2.ListPublicationsRequest(page_size=PAGE)
        for _page in range(MAX_PAGES):
            answer = await self._call(server, self._api(server).volumes.ListPublications, request)
            found += map(convert.read_publication, answer.publications)
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                break
        return found

    async def rotate(self, server: str, volume: str) -> None:
        """Have new secrets made for this host, whose session goes on."""
        message = service_pb2.RotateSecretsRequest(volume=f"volumes/{volume}")
        await self._call(server, self._api(server).service.RotateSecrets, message)

    async def usage(self, server: str, volume: str, *, timeout_s: float) -> dict[str, int]:
        """Ask what a volume that is published to this host takes of its pool."""
        request = volume_pb2.StatsVolumeRequest(name=f"volumes/{volume}")
        method = self._api(server).volumes.StatsVolume
        answer = await self._call(server, method, request, timeout_s)
        return {"used": answer.used_bytes, "referenced": answer.referenced_bytes}

    def _api(self, server: str) -> Api:
        config = self._config(server)
        if self._reached.get(server) != config:  # calls that run keep the old channel alive
            self._reached[server] = config
            self._channels[server] = tls_channel_aio(config)
        return Api(self._channels[server])

    def _config(self, server: str) -> Access:
        found = self._find(server)
        if found is None:
            raise NotFound(
                f"there is no server {server[:128]} in the configuration: zfsiloctl join",
                reason="NO_SERVER",
                server=server[:128],
            )
        return found

    async def _call(
        self, server: str, method: Any, request: Any, timeout_s: float = CALL_DEADLINE_S
    ) -> Any:
        """Call a method of a server. Its errors are raised here as they were there.

        What a connection's end cut off is asked once more, over a new one: the old one may be of
        before a power cut of the server, and every method may be asked twice.
        """
        try:
            try:
                return await method(request, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or status.is_ours(error):
                    raise
                return await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._translated(server, error) from None

    def _translated(self, server: str, error: grpc.aio.AioRpcError) -> ZfsiloError:
        found = status.from_status(error)
        address = self._config(server).address
        if not status.is_ours(error) or error.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        ):
            return Unavailable(
                f"the server {server} ({address}) did not answer: {found.message}",
                reason="SERVER_UNAVAILABLE",
                server=server,
                address=address,
            )
        facts = found.facts | {"server": server}
        return type(found)(f"{server} says: {found.message}", reason=found.reason, **facts)

    async def _portals(self, server: str, portals: tuple[str, ...]) -> tuple[str, ...]:
        """Return where to log in: a server that listens everywhere is meant where we reach it."""
        found = []
        for portal in portals:
            host, port = portal_parts(portal)
            if _is_wildcard(host):
                own, _port = split_address(self._config(server).address)
                host = await self._resolve(server, own, only_v4="." in host)
            found.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        return tuple(dict.fromkeys(found))

    async def _resolve(self, server: str, name: str, *, only_v4: bool) -> str:
        family = socket.AF_INET if only_v4 else socket.AF_UNSPEC
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(name, None, family=family, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Unavailable(
                f"the name {name} of the server {server} cannot be resolved: {error.strerror}",
                reason="SERVER_UNAVAILABLE",
                server=server,
                address=name,
            ) from None
        return str(found[0][4][0])


def _connection(volume: str, answer: Any, portals: tuple[str, ...]) -> Connection:
    return Connection(
        volume=volume,
        target=answer.target,
        portals=portals,
        serial=answer.serial,
        size_bytes=answer.size_bytes,
        mode=convert.MODES.name(answer.mode),
        epoch=answer.epoch,
        rotation=answer.rotation,
        readonly=answer.readonly,
        filesystem=convert.read_filesystem(answer.filesystem),
    )


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
