"""Failover by hand between two daemons: promotion, and the return of the former primary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from zfsilo.v1 import volume_pb2

from tests.api.replica_pair import DATASET
from tests.api.running import DATA, publish, refused
from zfsilod.model.identity import DAEMON
from zfsilod.model.records import Publication, Snapshot, Volume
from zfsilod.wire.storage_server import StorageServers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.api.replica_pair import ReplicaPair
    from tests.api.running import Front
    from zfsilod.storage.transaction import Transaction

PROMOTE = volume_pb2.PromoteVolumeRequest(name=DATA)
SURE = volume_pb2.PromoteVolumeRequest(name=DATA, primary_is_off=True)


class Two:
    """Two servers that know each other."""

    def __init__(self, pair: ReplicaPair) -> None:
        self.pair = pair
        self.give, self.other = pair.give, pair.other
        back = pair.give.certified("replica", "other")
        back.name = "give"
        self.back: dict[str, Any] = {"give": back}
        self.there = pair.known["other"]
        self.servers = StorageServers(self.back.get)
        pair.other.service.context.servers = self.servers

    def cut(self) -> None:
        """Let no server reach the other one."""
        self.pair.known.pop("other", None)
        self.back.pop("give", None)

    def join(self) -> None:
        """Let them reach each other again."""
        self.pair.known["other"] = self.there
        self.back["give"] = self.give.certified("replica", "other")
        self.back["give"].name = "give"

    def boot(self, front: Front, boot: str) -> None:
        """Reboot a server: what is volatile is gone, and its daemon starts again."""
        context = front.service.context
        facts = front.fixture.host.facts
        for name in list(facts.snapshot()):
            if name.partition(":")[0] in ("backstore", "target", "lun", "portals", "acl", "map"):
                facts.effect(name, None)
        context.boot_id = boot
        front.write(front.service.primaries.withhold)

    async def replicate_back(self) -> Any:
        request = volume_pb2.ReplicateVolumeRequest(name=DATA, peer="give")
        return await self.other.root().volumes.ReplicateVolume(request)


def volumes(front: Front) -> dict[str, Volume]:
    return {one.id: one for one in front.read(lambda txn: list(txn.scan(Volume)))}


def blocks(front: Front, volume: Volume) -> dict[str, str]:
    facts = front.fixture.host.facts
    kind = "replica-blocks" if volume.is_replica else "blocks"
    return dict(facts.get(f"{kind}:{volume.uid}") or {})


def exported(front: Front) -> list[str]:
    return [str(name) for name in front.fixture.host.facts.names("backstore")]


@pytest.fixture
async def two(pair: ReplicaPair) -> AsyncIterator[Two]:
    built = Two(pair)
    try:
        yield built
    finally:
        await built.servers.close()


async def test_a_primary_that_serves_is_not_replaced(two: Two) -> None:
    two.pair.write(0, "a")
    await two.pair.replicate()
    with refused("FAILED_PRECONDITION", "PRIMARY_SERVES"):
        await two.other.root().volumes.PromoteVolume(SURE)
    two.cut()
    with refused("FAILED_PRECONDITION", "PRIMARY_UNKNOWN"):
        await two.other.root().volumes.PromoteVolume(PROMOTE)


async def test_a_dead_primary_and_its_return(two: Two) -> None:
    pair = two.pair
    pair.write(0, "a")
    await pair.replicate()
    await two.give.root().volumes.PublishVolume(publish())
    pair.write(1, "only the primary had this")
    two.cut()
    answer = await two.other.root().volumes.PromoteVolume(SURE)
    assert answer.volume.term > 0
    promoted = volumes(two.other)["data"]
    assert not promoted.is_replica
    assert blocks(two.other, promoted) == {"0": "a"}
    assert "readonly" not in pair.zvol()["properties"]
    await two.other.root().volumes.PublishVolume(publish())
    two.boot(two.give, "second")
    await two.give.service.reconciler.sync_all(DAEMON)
    assert not exported(two.give)
    shown = await two.give.root().volumes.GetVolume(volume_pb2.GetVolumeRequest(name=DATA))
    assert list(shown.condition_reasons) == ["PEER_SILENT"]
    with refused("FAILED_PRECONDITION", "PEER_SILENT"):
        await two.give.root().volumes.PublishVolume(publish(host="hosts/take"))
    two.join()
    await two.give.service.reconciler.sync_all(DAEMON)
    assert not exported(two.give)
    kept = volumes(two.give)
    replica = kept.pop("data")
    (aside,) = kept.values()
    assert replica.is_replica
    assert aside.aside_of == "data"
    assert blocks(two.give, aside) == {"0": "a", "1": "only the primary had this"}
    assert not two.give.read(lambda txn: list(txn.scan(Publication)))
    assert not two.give.fixture.host.facts.names("peer")
    snapshots = two.give.read(lambda txn: list(txn.scan(Snapshot)))
    assert [one.volume for one in snapshots] == [aside.id]
    await two.replicate_back()
    assert blocks(two.give, replica) == {"0": "a"}


async def test_a_planned_failover_and_back(two: Two) -> None:
    pair = two.pair
    pair.write(0, "a")
    await pair.replicate()
    pair.write(1, "b")
    demote = volume_pb2.DemoteVolumeRequest(name=DATA, peer="other")
    await two.give.root().volumes.PublishVolume(publish())
    with refused("FAILED_PRECONDITION", "PUBLISHED"):
        await two.give.root().volumes.DemoteVolume(demote)
    unpublish = volume_pb2.UnpublishVolumeRequest(name=DATA, host="hosts/take")
    await two.give.root().volumes.UnpublishVolume(unpublish)
    await two.give.root().volumes.DemoteVolume(demote)
    former = volumes(two.give)["data"]
    assert former.is_replica
    zvol = two.give.fixture.host.facts.get(f"zvol:{DATASET}")
    assert zvol["properties"]["readonly"] == "on"
    await two.other.root().volumes.PromoteVolume(PROMOTE)
    promoted = volumes(two.other)["data"]
    assert blocks(two.other, promoted) == {"0": "a", "1": "b"}
    facts = two.other.fixture.host.facts
    facts.effect(f"blocks:{promoted.uid}", {"0": "a", "1": "c"})
    await two.replicate_back()
    assert blocks(two.give, volumes(two.give)["data"]) == {"0": "a", "1": "c"}
    back = volume_pb2.DemoteVolumeRequest(name=DATA, peer="give")
    facts.effect(f"blocks:{promoted.uid}", {"0": "a", "1": "d"})
    await two.other.root().volumes.DemoteVolume(back)
    with refused("FAILED_PRECONDITION", "REPLICA"):
        await two.give.root().volumes.PublishVolume(publish())
    await two.give.root().volumes.PromoteVolume(PROMOTE)
    again = volumes(two.give)["data"]
    assert blocks(two.give, again) == {"0": "a", "1": "d"}
    assert again.term > promoted.term
    await pair.replicate()
    assert list(volumes(two.give)) == ["data"], "nothing was put aside"


async def test_a_volume_that_is_served_without_its_peer(two: Two) -> None:
    await two.pair.replicate()
    await two.give.root().volumes.PublishVolume(publish())
    two.cut()
    two.boot(two.give, "second")
    primaries = two.give.service.primaries
    await primaries.follow()
    with refused("FAILED_PRECONDITION", "PRIMARY_UNKNOWN"):
        await two.give.root().volumes.PromoteVolume(PROMOTE)
    await two.give.root().volumes.PromoteVolume(SURE)
    assert not exported(two.give)
    await primaries.follow()
    assert exported(two.give)
    two.join()
    await two.other.root().volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=DATA))
    end = volume_pb2.EndReplicationRequest(name=DATA, peer="other")
    await two.give.root().volumes.EndReplication(end)
    assert volumes(two.give)["data"].peers == (), "a peer that has nothing is forgotten"


async def test_a_server_that_runs_learns_it_by_a_replication(two: Two) -> None:
    await two.pair.replicate()
    await two.give.root().volumes.PublishVolume(publish())
    two.cut()
    await two.other.root().volumes.PromoteVolume(SURE)  # not true
    two.join()
    assert exported(two.give)
    with refused("FAILED_PRECONDITION", "PROMOTED_ELSEWHERE"):
        await two.pair.replicate()
    await two.give.service.primaries.follow()
    assert not exported(two.give)
    assert volumes(two.give)["data"].is_replica


async def test_a_volume_from_the_trash_is_not_served_before_its_peer_was_asked(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two.pair.replicate()
    demote = volume_pb2.DemoteVolumeRequest(name=DATA, peer="other")
    await two.give.root().volumes.DemoteVolume(demote)
    there = two.other.root().volumes
    await there.PromoteVolume(PROMOTE)
    # Promotions of one second, which do not know of each other, have the order of their stores.
    now = two.give.service.context.now
    monkeypatch.setattr(two.give.service.context, "now", lambda: now() + 5)
    keep = volume_pb2.DEPENDENTS_KEEP
    await there.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=DATA, dependents=keep))
    await two.give.root().volumes.PromoteVolume(PROMOTE)
    await two.give.root().volumes.PublishVolume(publish())
    await there.UndeleteVolume(volume_pb2.UndeleteVolumeRequest(name=DATA))
    with refused("FAILED_PRECONDITION", "NOT_ASKED"):
        await there.PublishVolume(publish())
    assert not exported(two.other)
    await two.other.service.primaries.follow()
    assert volumes(two.other)["data"].is_replica


async def test_a_store_from_before_peers_were_noted_has_them_asked(two: Two) -> None:
    await two.pair.replicate()
    await two.give.root().volumes.PublishVolume(publish())
    two.give.write(lambda txn: txn.put(volumes(two.give)["data"].but(peers=())))
    two.cut()
    await two.other.root().volumes.PromoteVolume(SURE)
    two.boot(two.give, "second")
    await two.give.service.reconciler.sync_all(DAEMON)
    assert volumes(two.give)["data"].peers == ("other",)
    assert not exported(two.give)


async def test_a_promoted_volume_with_another_id_is_no_proof(two: Two) -> None:
    await two.pair.replicate()
    await two.give.root().volumes.PublishVolume(publish())
    two.cut()
    await two.other.root().volumes.PromoteVolume(SURE)
    promoted = volumes(two.other)["data"]

    def rename(txn: Transaction) -> None:
        txn.drop(Volume.bucket(), "data")
        txn.put(promoted.but(id="found", revision=0))

    two.other.write(rename)
    two.join()
    two.boot(two.give, "second")
    await two.give.service.reconciler.sync_all(DAEMON)
    assert not exported(two.give)
