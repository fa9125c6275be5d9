"""Service: what this host is, how much room it has, and how it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilo.v1 import service_pb2

from zfsilod import __version__
from zfsilod.api.rpc.pages import Pages, collect
from zfsilod.api.rpc.volumes import need_view
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.pool_space import largest_volume, nearly_full
from zfsilod.model.zfs_properties import check_properties
from zfsilod.requests import orphans
from zfsilod.requests.rotate_secrets import RotateSecrets
from zfsilod.security.authorization import own_host
from zfsilod.service.orphan_scan import find_orphans
from zfsilod.storage.summary import Attention, Summary, about_volume
from zfsilod.wire import convert

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.api.rpc.calls import Call
    from zfsilod.service.service import Service

MAX_ATTENTION = 100
# By which clients tell later servers of v1 from the first.
FEATURES = ("snapshots", "snapshot-groups", "clones", "trash")


class Info:
    """The methods of zfsilo.v1.Service."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def GetServerInfo(
        self, _request: service_pb2.GetServerInfoRequest, call: Call
    ) -> service_pb2.ServerInfo:
        return _server(call)

    async def GetCapacity(
        self, message: service_pb2.GetCapacityRequest, call: Call
    ) -> service_pb2.Capacity:
        check_properties(convert.as_pairs(message.properties), new=True)
        room = await call.service.capacity(message.root)
        settings, available = call.service.context.settings, room.available_bytes
        if message.HasField("thin"):
            promised = call.read(lambda txn: txn.promised())
            available = largest_volume(room, settings, promised, thin=message.thin)
        complaint = nearly_full(room, settings)
        return service_pb2.Capacity(
            available_bytes=available,
            total_bytes=room.total_bytes,
            conditions=[complaint] if complaint else [],
        )

    async def GetStatus(
        self, _request: service_pb2.GetStatusRequest, call: Call
    ) -> service_pb2.Status:
        found = await call.scan(Summary)
        status = service_pb2.Status(
            server=_server(call),
            root=call.service.context.settings.root,
            promised_bytes=found.promised_bytes,
            volumes=found.states,
            operations=found.operations,
            publications=found.publications.total(),
            hosts=found.hosts,
        )
        attention = [*found.attention, *await _broken(call.service, found.attention)]
        if status.root:
            try:
                room = await call.service.capacity("")
            except ZfsiloError as error:
                attention.insert(0, Attention(subject="", sentence=error.message))
            else:
                status.capacity.available_bytes = room.available_bytes
                status.capacity.total_bytes = room.total_bytes
                if complaint := nearly_full(room, call.service.context.settings):
                    status.capacity.conditions.append(complaint)
                    attention.insert(0, Attention(subject="", sentence=complaint))
        status.attention_count = len(attention)
        status.attention.extend(
            service_pb2.Attention(subject=a.subject, sentence=a.sentence, command=a.command)
            for a in attention[:MAX_ATTENTION]
        )
        return status

    async def ListOrphans(
        self, message: service_pb2.ListOrphansRequest, call: Call
    ) -> service_pb2.ListOrphansResponse:
        page = self._pages.parse("ListOrphans", message)
        found = await call.lasting(find_orphans(call.service.context))
        shown, after = collect(
            (each for each in found if each.name > page.after),
            page,
            key=lambda each: each.name,
            wanted=lambda _each: True,
            show=_orphan,
        )
        return service_pb2.ListOrphansResponse(
            orphans=shown, next_page_token=self._pages.token(page, after)
        )

    async def RemoveOrphans(
        self, message: service_pb2.RemoveOrphansRequest, call: Call
    ) -> service_pb2.RemoveOrphansResponse:
        request = orphans.RemoveOrphans(names=tuple(message.names), force=message.force)
        operation = await call.change(request, validate_only=message.validate_only)
        return service_pb2.RemoveOrphansResponse(operation=operation)

    async def RotateSecrets(
        self, message: service_pb2.RotateSecretsRequest, call: Call
    ) -> service_pb2.RotateSecretsResponse:
        volume_id = convert.volume_id(message.volume)
        host_id = convert.host_id(message.host) if message.host else ""
        force = message.force
        if call.caller.role == "host":
            need_view(call, volume_id)
            host_id, force = own_host(call.caller, host_id), True  # it knows of its own session
        request = RotateSecrets(volume=volume_id, host=host_id, force=force)
        operation = await call.change(request, validate_only=message.validate_only)
        return service_pb2.RotateSecretsResponse(operation=operation)


async def _broken(service: Service, known: Sequence[Attention]) -> list[Attention]:
    """Return the sessions that are broken now, and that no look before has told of."""
    told = {each.subject for each in known}
    broken = await service.stats.broken_sessions()
    found = [about_volume(*each) for each in broken.items()]
    return [each for each in found if each.subject not in told]


def _server(call: Call) -> service_pb2.ServerInfo:
    settings = call.service.context.settings
    return service_pb2.ServerInfo(
        version=__version__,
        host=f"hosts/{settings.host_id}",
        roles=["server", "client"] if settings.root else ["client"],
        features=FEATURES,
        caller=str(call.caller),
        zone=settings.zone,
        max_attachments=settings.max_attachments,
    )


def _orphan(found: orphans.Orphan) -> service_pb2.Orphan:
    return service_pb2.Orphan(name=found.name, text=found.text, users=found.users)
