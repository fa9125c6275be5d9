"""Service: what this host is, and how much room it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilo.v1 import service_pb2

from zfsilod import __version__

if TYPE_CHECKING:
    from zfsilod.api.calls import Call

FEATURES: tuple[str, ...] = ()  # by which clients tell later servers of v1 from the first


class Info:
    """The methods of zfsilo.v1.Service."""

    async def GetServerInfo(
        self, _request: service_pb2.GetServerInfoRequest, call: Call
    ) -> service_pb2.ServerInfo:
        settings = call.service.settings
        return service_pb2.ServerInfo(
            version=__version__, host=f"hosts/{settings.host_id}",
            roles=["give", "take"] if settings.root else ["take"], features=FEATURES,
            caller=str(call.caller),
        )  # fmt: skip

    async def GetCapacity(
        self, request: service_pb2.GetCapacityRequest, call: Call
    ) -> service_pb2.Capacity:
        room = await call.service.capacity(request.root)
        return service_pb2.Capacity(
            available_bytes=room.available_bytes, total_bytes=room.total_bytes
        )
