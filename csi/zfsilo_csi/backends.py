"""The backends, which are the configured servers: lookup, placement, common features."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import service_pb2
from zfsilo.v1 import volume_pb2 as pb

from zfsilo_csi.errors import Code, CsiError, invalid
from zfsilo_csi.ids import unknown
from zfsilo_csi.service_capabilities import TLS
from zfsilo_csi.stubs import Zfsilod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from csi.v1 import csi_pb2

    from zfsilo_csi.calls import CsiCall
    from zfsilo_csi.config import BackendConfig
    from zfsilo_csi.ids import Handle

ZONE_KEY = "topology.zfsilo.io/zone"
OPTIONAL_S = 5.0  # per backend, so that one that is down does not delay the others


class Backend(Zfsilod):
    """A server, under its name in the plugin's configuration."""

    def __init__(self, name: str, config: BackendConfig, channel: Any) -> None:
        super().__init__(f"backend {name}", channel)
        self.key = name
        self.zones = tuple(config.zones)

    async def check_tls(self, call: CsiCall) -> None:
        """Raise FAILED_PRECONDITION if the zfsilod of this server is older than TLS.

        It would drop the field, and create a volume without.
        """
        info = await self.service.GetServerInfo(service_pb2.GetServerInfoRequest(), call)
        if TLS not in info.features:
            raise CsiError(
                Code.FAILED_PRECONDITION,
                f"backend {self.key} has a zfsilod without TLS; update it, or use a StorageClass "
                "without the parameter tls",
            )

    async def get_volume(self, handle: Handle, call: CsiCall) -> pb.Volume:
        """Return a volume that this server stores, else raise NOT_FOUND.

        A volume without uid is only attached to the server: another server stores it.
        """
        call.note(volume=str(handle))
        volume: pb.Volume = await self.volumes.GetVolume(
            pb.GetVolumeRequest(name=f"volumes/{handle.id}"), call
        )
        if not volume.uid:
            raise unknown(str(handle), "volume")
        return volume


class Backends:
    """All backends, ordered by name."""

    def __init__(
        self, configs: dict[str, BackendConfig], connect: Callable[[BackendConfig], Any]
    ) -> None:
        self._channels = {name: connect(config) for name, config in configs.items()}
        self._backends = {
            name: Backend(name, config, self._channels[name])
            for name, config in sorted(configs.items())
        }

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends.values())

    @property
    def names(self) -> list[str]:
        """The names, in the order of list pages."""
        return list(self._backends)

    def get(self, name: str) -> Backend:
        """Return the backend of an id, else raise UNAVAILABLE: the volume may still exist there."""
        backend = self._backends.get(name)
        if backend is None:
            raise unconfigured(name)
        return backend

    def chosen(self, name: str) -> Backend:
        """Return the backend that a StorageClass names, else raise INVALID_ARGUMENT."""
        if name not in self._backends:
            raise invalid(
                f"parameter backend: {name[:64]!r} is not in the plugin's configuration; "
                f"use one of {', '.join(self.names)}"
            )
        return self._backends[name]

    def within(self, topology: csi_pb2.Topology | None) -> list[Backend]:
        """Return the backends that a part of the cluster can reach; all if `topology` is None."""
        zone = zone_of(topology) if topology is not None else ""
        return [backend for backend in self if not zone or zone in backend.zones]

    async def features(self, call: CsiCall) -> frozenset[str]:
        """Return the features common to all backends that reply; UNAVAILABLE if none does."""
        daemon_request = service_pb2.GetServerInfoRequest()
        replies = await asyncio.gather(
            *(
                backend.service.GetServerInfo(daemon_request, call.at_most(OPTIONAL_S))
                for backend in self
            ),
            return_exceptions=True,
        )
        known = [
            frozenset(info.features) for info in replies if not isinstance(info, BaseException)
        ]
        if not known:
            raise CsiError(
                Code.UNAVAILABLE,
                f"no reply from any backend ({', '.join(self.names)}); "
                "check that zfsilod runs there and that the plugin can reach it",
            )
        return frozenset.intersection(*known)

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()


def unconfigured(name: str) -> CsiError:
    """Return the error for an id whose backend is not in the configuration."""
    return CsiError(
        Code.UNAVAILABLE,
        f"backend {name} is not in the plugin's configuration; add it as [backends.{name}]",
    )


def deciding(
    backends: list[Backend], wanted: csi_pb2.TopologyRequirement | None, name: str
) -> list[Backend]:
    """Return the backends that may get a new volume, best first: those of one zone.

    It is the first preferred zone that a backend serves, since this is the zone of the node that
    the scheduler has chosen: a pod could not reach a volume of another one. When it is full, the
    scheduler chooses another node. Without a preference, all requisite zones are equal.

    The order depends on the request alone, not on free space: a repeated call starts at the same
    backend and never creates a second volume on another one.
    """
    requisite = [zone_of(topology) for topology in wanted.requisite] if wanted else []
    allowed = [backend for backend in backends if not requisite or _serves(backend, requisite)]
    for topology in wanted.preferred if wanted else ():
        nearest = [backend for backend in allowed if _serves(backend, [zone_of(topology)])]
        if nearest:
            allowed = nearest
            break

    def rank(backend: Backend) -> bytes:
        return hashlib.sha256(f"{name}\0{backend.key}".encode()).digest()

    return sorted(allowed, key=rank)


def zone_of(topology: csi_pb2.Topology) -> str:
    """Return the zone of a topology; "" stands for any zone."""
    return str(topology.segments.get(ZONE_KEY, ""))


def _serves(backend: Backend, zones: list[str]) -> bool:
    return any(zone in ("", *backend.zones) for zone in zones)
