"""Two servers, each behind its gateway: the first sends its volumes to the other one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import volume_pb2

from tests.api.running import DATA, front_of
from tests.service_fixture import SETTINGS
from zfsilod.model.records import Volume
from zfsilod.wire.storage_server import StorageServers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api.running import Front

REPLICATE = volume_pb2.ReplicateVolumeRequest(name=DATA, peer="other")
DATASET = "tank/zfsilo/data"


class ReplicaPair:
    """Two servers: `give` sends its volumes to `other`."""

    def __init__(self, give: Front, other: Front, known: dict[str, Any]) -> None:
        self.give = give
        self.other = other
        self.known = known  # the servers of servers.d of give, by name

    async def replicate(self, **fields: Any) -> Any:
        request = volume_pb2.ReplicateVolumeRequest()
        request.CopyFrom(REPLICATE)
        for name, value in fields.items():
            setattr(request, name, value)
        return await self.give.root().volumes.ReplicateVolume(request)

    def write(self, number: int, text: str) -> None:
        """Write a block of the volume."""
        facts, uid = self.give.fixture.host.facts, self.volume().uid
        blocks = facts.get(f"blocks:{uid}") or {}
        facts.effect(f"blocks:{uid}", blocks | {str(number): text})

    def volume(self) -> Volume:
        volume: Volume = self.give.read(lambda txn: txn.get(Volume, "data"))
        return volume

    def replica(self) -> Any:
        return self.other.read(lambda txn: txn.get(Volume, "data"))

    def received(self) -> dict[str, str]:
        """Return the blocks that the peer has."""
        facts = self.other.fixture.host.facts
        return dict(facts.get(f"replica-blocks:{self.volume().uid}") or {})

    def zvol(self) -> Any:
        return self.other.fixture.host.facts.get(f"zvol:{DATASET}")

    async def receive_ended(self) -> None:
        """Wait for the operation that receives: a cut is known to the sender first."""
        servers = self.give.service.context.servers
        await servers.replica("other", "data", self.volume().uid, wait=True)

    def is_same(self) -> bool:
        facts = self.give.fixture.host.facts
        return self.received() == (facts.get(f"blocks:{self.volume().uid}") or {})


@asynccontextmanager
async def pair_in(directory: Path) -> AsyncIterator[ReplicaPair]:
    """Run two servers; the first has a certificate of the other, with the role replica."""
    there = SETTINGS.but(host_id="other")
    async with front_of(directory / "give") as give, front_of(directory / "other", there) as other:
        access = other.certified("replica", "give")
        access.name = "other"
        known = {"other": access}
        servers = StorageServers(known.get)
        give.service.context.servers = servers
        try:
            yield ReplicaPair(give, other, known)
        finally:
            await servers.close()
