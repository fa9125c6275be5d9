"""Service: what this host is, how much room it has, and how it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilo.v1 import service_pb2

from zfsilod import __version__
from zfsilod.errors import ZfsiloError
from zfsilod.summary import Attention, Summary

if TYPE_CHECKING:
    from zfsilod.api.calls import Call

MAX_ATTENTION = 100
FEATURES: tuple[str, ...] = ()  # by which clients tell later servers of v1 from the first


class Info:
    """The methods of zfsilo.v1.Service."""

    async def GetServerInfo(
        self, _request: service_pb2.GetServerInfoRequest, call: Call
    ) -> service_pb2.ServerInfo:
        return _server(call)

    async def GetCapacity(
        self, request: service_pb2.GetCapacityRequest, call: Call
    ) -> service_pb2.Capacity:
        room = await call.service.capacity(request.root)
        return service_pb2.Capacity(
            available_bytes=room.available_bytes, total_bytes=room.total_bytes
        )

    async def GetStatus(
        self, _request: service_pb2.GetStatusRequest, call: Call
    ) -> service_pb2.Status:
        found = await call.scan(Summary)
        status = service_pb2.Status(
            server=_server(call), root=call.service.settings.root,
            promised_bytes=found.promised_bytes, volumes=found.heights,
            operations=found.operations, publications=found.publications.total(),
            hosts=found.hosts, attention_count=len(found.attention),
        )  # fmt: skip
        attention = list(found.attention[:MAX_ATTENTION])
        if status.root:
            try:
                room = await call.service.capacity("")
            except ZfsiloError as error:
                attention.insert(0, Attention(subject="", sentence=error.message))
                status.attention_count += 1
            else:
                status.capacity.available_bytes = room.available_bytes
                status.capacity.total_bytes = room.total_bytes
        status.attention.extend(
            service_pb2.Attention(subject=a.subject, sentence=a.sentence, command=a.command)
            for a in attention
        )
        return status


def _server(call: Call) -> service_pb2.ServerInfo:
    settings = call.service.settings
    return service_pb2.ServerInfo(
        version=__version__, host=f"hosts/{settings.host_id}",
        roles=["give", "take"] if settings.root else ["take"], features=FEATURES,
        caller=str(call.caller), zone=settings.zone, max_attachments=settings.max_attachments,
    )  # fmt: skip
