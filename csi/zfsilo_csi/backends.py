"""The storage hosts: which of them a request is for, and in which order they are tried."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import service_pb2

from zfsilo_csi.api import Zfsilod
from zfsilo_csi.calls import short
from zfsilo_csi.errors import Code, CsiError, invalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from csi.v1 import csi_pb2

    from zfsilo_csi.calls import Call
    from zfsilo_csi.config import BackendConfig

ZONE_KEY = "topology.zfsilo.io/zone"
ASK_S = 5.0  # for what a backend can do: the others are not kept waiting for one that is down


class Backend(Zfsilod):
    """A storage host, by its name in our configuration."""

    def __init__(self, name: str, config: BackendConfig, channel: Any) -> None:
        super().__init__(f"backend {name}", channel)
        self.key = name
        self.zones = tuple(config.zones)
        self.server = config.server or name


class Backends:
    """All storage hosts."""

    def __init__(
        self, configs: dict[str, BackendConfig], connect: Callable[[BackendConfig], Any]
    ) -> None:
        self._channels = {name: connect(config) for name, config in configs.items()}
        self._all = {
            name: Backend(name, config, self._channels[name])
            for name, config in sorted(configs.items())
        }

    def __iter__(self) -> Any:
        return iter(self._all.values())

    @property
    def names(self) -> list[str]:
        """Their names, in the order of lists."""
        return list(self._all)

    def get(self, name: str) -> Backend:
        """Return the storage host of an id. One that we do not know is as good as down."""
        found = self._all.get(name)
        if found is None:
            raise CsiError(Code.UNAVAILABLE, f"the backend {name} is not in the configuration")
        return found

    def chosen(self, name: str) -> Backend:
        """Return the storage host that a StorageClass names, else raise INVALID_ARGUMENT."""
        if name not in self._all:
            raise invalid(f"the parameter backend names {name[:64]!r}, which is not configured")
        return self._all[name]

    def within(self, topology: csi_pb2.Topology | None) -> list[Backend]:
        """Return those that serve a part of the cluster; without one, all."""
        zone = zone_of(topology) if topology is not None else ""
        return [each for each in self._all.values() if not zone or zone in each.zones]

    async def features(self, call: Call) -> frozenset[str]:
        """Return what all backends can do that answer; raise UNAVAILABLE when none does."""
        found = await asyncio.gather(
            *(each.service.GetServerInfo(service_pb2.GetServerInfoRequest(), short(call, ASK_S))
              for each in self._all.values()),
            return_exceptions=True,
        )  # fmt: skip
        known = [frozenset(each.features) for each in found if not isinstance(each, BaseException)]
        if not known:
            raise CsiError(Code.UNAVAILABLE, "no backend answers")
        return frozenset.intersection(*known)

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()


def in_order(
    backends: list[Backend], wanted: csi_pb2.TopologyRequirement | None, name: str
) -> list[Backend]:
    """Return the backends that may have a new volume, best first.

    The order depends on the request alone. So a repeated call begins where the first one did, and
    never makes a second volume elsewhere; by the free room it might.
    """
    requisite = [zone_of(each) for each in wanted.requisite] if wanted else []
    preferred = [zone_of(each) for each in wanted.preferred] if wanted else []
    allowed = [each for each in backends if not requisite or _serves(each, requisite)]

    def rank(backend: Backend) -> tuple[int, bytes]:
        place = next((i for i, z in enumerate(preferred) if _serves(backend, [z])), len(preferred))
        return place, hashlib.sha256(f"{name}\0{backend.key}".encode()).digest()

    return sorted(allowed, key=rank)


def zone_of(topology: csi_pb2.Topology) -> str:
    """Return the zone of a part of the cluster; "": of any zone."""
    return str(topology.segments.get(ZONE_KEY, ""))


def _serves(backend: Backend, zones: list[str]) -> bool:
    return any(zone in ("", *backend.zones) for zone in zones)
