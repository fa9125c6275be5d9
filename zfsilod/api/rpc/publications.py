"""VolumeService on a server: publications, connections and filesystem reports."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from zfsilo.v1 import volume_pb2

from zfsilod.api.rpc.pages import Pages, collect
from zfsilod.api.rpc.volumes import change_volume, need_view
from zfsilod.engine import plans
from zfsilod.model.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    StoreCorrupt,
)
from zfsilod.model.records import Host, Publication
from zfsilod.requests import publications, report_filesystem, volumes
from zfsilod.requests.hosts import bound
from zfsilod.security.credentials import check_caller
from zfsilod.wire import convert, enums

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.api.rpc.call import Call
    from zfsilod.model.records import Volume
    from zfsilod.storage.transaction import Transaction

# Both become arguments of zfs(8).
FILESYSTEM_TYPE = re.compile(r"[a-z][a-z0-9_]{0,31}")
FILESYSTEM_UUID = re.compile(r"[A-Za-z0-9-]{1,64}")


class PublicationMethods:
    """Publish, Unpublish, ListPublications, FetchConnection, ReportFilesystem."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def PublishVolume(
        self, message: volume_pb2.PublishVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        volume_id, host_id = convert.volume_id(message.name), _host(message.host, call)
        # A host need not know access mode and transport of its volume.
        request = publications.Publish(
            volume=volume_id,
            host=host_id,
            access_mode=enums.ACCESS_MODES.name_or_empty(message.access_mode),
            readonly=message.readonly,
            client_operation=convert.ulid(message.client_operation),
            transport=enums.TRANSPORTS.name_or_empty(message.transport),
            tls=message.tls,
            force=message.force,
            for_csi=message.for_csi,
            etag=message.etag,
        )
        return await change_volume(call, request, volume_id, validate_only=message.validate_only)

    async def UnpublishVolume(
        self, message: volume_pb2.UnpublishVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        volume_id = convert.volume_id(message.name)
        if message.all_hosts and message.host:
            raise InvalidArgument("host and all_hosts exclude each other", reason="NO_HOST")
        host_id = "" if message.all_hosts else _host(message.host, call)
        request = publications.Unpublish(
            volume=volume_id,
            host=host_id,
            client_operation=convert.ulid(message.client_operation),
            fence=message.fence,
            grace_s=message.grace.seconds if message.HasField("grace") else publications.GRACE_S,
            etag=message.etag,
        )
        return await change_volume(call, request, volume_id, validate_only=message.validate_only)

    async def ListPublications(
        self, message: volume_pb2.ListPublicationsRequest, call: Call
    ) -> volume_pb2.ListPublicationsResponse:
        page = self._pages.parse("ListPublications", message)
        volume_id = convert.volume_id(message.volume) if message.volume else ""
        host_id = convert.host_id(message.host) if message.host else ""
        if call.caller.role == "host":
            host_id = call.caller.own_host(host_id)

        def read(txn: Transaction) -> tuple[list[volume_pb2.Publication], str]:
            records: Iterable[Publication]
            if volume_id:
                records = (p for p in txn.scan_below(Publication, volume_id) if p.key > page.after)
            elif host_id:
                records = txn.scan_ending(Publication, host_id, page.after)
            else:
                records = txn.scan(Publication, page.after)
            return collect(
                records,
                page,
                key=lambda publication: publication.key,
                wanted=lambda publication: host_id in ("", publication.host),
                show=convert.publication,
            )

        shown, after = await call.scan(read)
        return volume_pb2.ListPublicationsResponse(
            publications=shown, next_page_token=self._pages.token(page, after)
        )

    async def FetchConnection(
        self, message: volume_pb2.FetchConnectionRequest, call: Call
    ) -> volume_pb2.FetchConnectionResponse:
        volume_id, host_id = convert.volume_id(message.name), _host(message.host, call)
        view = enums.CONNECTION_VIEWS.name_or_empty(message.view)
        if not view and call.caller.role != "host":
            raise PermissionDenied(
                f"only a host fetches its secrets at any time, and {call.caller} is not one: use "
                "the view NAMES, or ONCE to see them",
                reason="ROLE",
            )
        call.changed = view != "NAMES"  # the audit has each time that secrets were returned

        def read(txn: Transaction) -> tuple[Volume, Publication]:
            volume = volumes.need_volume(txn, volume_id)
            return volume, volumes.need_publication(txn, volume_id, host_id)

        need_view(call, volume_id)
        call.service.context.ownership.check_pool()
        await _bind(call)
        volume, _publication = call.read(read)
        filesystem = await report_filesystem.known_filesystem(call.service.context, volume)
        volume, publication = call.read(read)  # it may have been withdrawn meanwhile
        export = call.service.context.settings.export
        target = plans.target_name(export.prefix, volume)
        if view == "NAMES":
            names = volume_pb2.Chap(username=publication.initiator, mutual_username=target)
        else:
            try:
                # The first decryption imports cryptography: not on the event loop.
                chap = await asyncio.to_thread(call.service.context.store.chap, publication.secret)
            except StoreCorrupt:
                call.read(read)  # raises NotFound when it was withdrawn since it was read
                raise
            names = volume_pb2.Chap(**chap.values())
        if view == "ONCE":
            await _show_once(call, publication)
        return volume_pb2.FetchConnectionResponse(
            volume=f"volumes/{volume_id}",
            target=target,
            portals=export.portals_of(publication.transport, tls=publication.tls),
            tls=publication.tls,
            serial=volume.uid,
            size_bytes=volume.capacity_bytes,
            mode=enums.MODES.number(volume.mode),
            epoch=publication.epoch,
            rotation=publication.rotation,
            readonly=publication.readonly,
            filesystem=convert.filesystem(filesystem),
            chap=names,
            by_controller=publication.by_controller,
        )

    async def ReportFilesystem(
        self, message: volume_pb2.ReportFilesystemRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        volume_id, host_id = convert.volume_id(message.name), _host(message.host, call)
        filesystem = message.filesystem
        state = enums.FILESYSTEM_STATES.name(filesystem.state)
        if state == "NONE":
            raise InvalidArgument(
                "invalid filesystem state NONE: expected FORMATTING or READY", reason="BAD_ENUM"
            )
        check_filesystem(filesystem)
        request = report_filesystem.ReportFilesystem(
            volume=volume_id,
            host=host_id,
            epoch=message.epoch,
            state=state,
            type=filesystem.type,
            uuid=filesystem.uuid,
            operation=convert.ulid(filesystem.operation),
        )
        return await change_volume(call, request, volume_id, validate_only=message.validate_only)


def _host(name: str, call: Call) -> str:
    """Return the id of the host in a request, by default that of the caller."""
    return call.caller.own_host(convert.host_id(name) if name else "")


async def _show_once(call: Call, publication: Publication) -> None:
    """Record that a person sees the secrets of a publication. Raises when one saw them before."""
    if call.caller.role != "admin":
        raise PermissionDenied(f"{call.caller} may not see secrets", reason="ROLE")

    def show(txn: Transaction) -> None:
        check_caller(txn, call.caller)
        present = volumes.need_publication(txn, publication.volume, publication.host)
        volumes.check_unclaimed(txn, publication.volume)
        if present.secret != publication.secret or present.shown == present.rotation:
            raise FailedPrecondition(
                f"the secrets of {publication.volume} for {publication.host} were shown before: "
                "replace them to see new ones",
                reason="SECRETS_SHOWN",
                volume=publication.volume,
                host=publication.host,
            )
        txn.put(present.but(shown=present.rotation))

    await call.service.context.write(show)


async def _bind(call: Call) -> None:
    """Bind a host to its machine and authority at its first contact."""

    def bind(txn: Transaction) -> None:
        check_caller(txn, call.caller)
        host = txn.get(Host, call.caller.subject)
        if host is not None and host != bound(call.caller, host):
            txn.put(bound(call.caller, host))

    host = call.read(lambda txn: txn.get(Host, call.caller.subject))
    if host is not None and host != bound(call.caller, host):
        await call.service.context.write(bind)


def check_filesystem(message: volume_pb2.Filesystem) -> None:
    """Raise InvalidArgument (BAD_FILESYSTEM) for a type or a UUID that no filesystem has."""
    if not FILESYSTEM_TYPE.fullmatch(message.type):
        raise InvalidArgument("invalid filesystem type", reason="BAD_FILESYSTEM")
    if not FILESYSTEM_UUID.fullmatch(message.uuid):
        raise InvalidArgument("invalid filesystem UUID", reason="BAD_FILESYSTEM")
