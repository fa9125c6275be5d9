"""The snapshot that both servers have, when records or the pool were changed behind zfsilo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from zfsilo.v1 import snapshot_pb2, volume_pb2

from tests.api.running import DATA, create, refused
from tests.api.test_replication import CutAfter
from tests.examples import VOLUME
from zfsilod.model.records import Dependent, Snapshot
from zfsilod.model.replica import Replication
from zfsilod.requests.replication import snapshot_name
from zfsilod.service import replication
from zfsilod.service.pool_scan import unknown_snapshots

if TYPE_CHECKING:
    from tests.api.replica_pair import ReplicaPair
    from zfsilod.storage.transaction import Transaction

DELETE = volume_pb2.DeleteVolumeRequest(name=DATA)
END = volume_pb2.EndReplicationRequest(name=DATA, peer="other")


def taken(pair: ReplicaPair) -> list[str]:
    ids: list[str] = pair.give.read(lambda txn: [one.id for one in txn.scan(Snapshot)])
    return ids


def kept(pair: ReplicaPair) -> list[str]:
    facts = pair.give.fixture.host.facts
    return [*facts.names("peer"), *facts.names("bookmark")]


def record(pair: ReplicaPair) -> Any:
    return pair.give.read(lambda txn: next(txn.scan(Replication)))


def lose(pair: ReplicaPair, *records: Any) -> None:
    """Remove records, as the loss of a store does."""

    def drop(txn: Transaction) -> None:
        for one in records:
            txn.drop(one.bucket(), one.key)

    pair.give.write(drop)


def restore(pair: ReplicaPair, *records: Any) -> None:
    """Put records of an older day in their place."""

    def put(txn: Transaction) -> None:
        for one in records:
            txn.put(one.but(revision=0))

    pair.give.write(put)


def lose_snapshot(pair: ReplicaPair, snapshot: Any) -> None:
    """Remove the record of a snapshot."""
    name = f"{snapshot.volume_uid}/snapshots/{snapshot.id}"
    lose(pair, snapshot, pair.give.read(lambda txn: txn.get(Dependent, name)))


async def fail(pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicate until the connection breaks."""
    with monkeypatch.context() as only_now:
        only_now.setattr(replication, "ATTEMPTS_PAUSE_S", ())
        CutAfter(only_now, 500)
        with refused("UNAVAILABLE", "STREAM_CUT"):
            await pair.replicate()


async def test_a_pending_snapshot_that_is_deleted_leaves_nothing(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        pair.write(number, f"block {number}")
    root = pair.give.root()
    for _twice in range(2):
        await fail(pair, monkeypatch)
        name = f"snapshots/{taken(pair)[0]}"
        await root.snapshots.DeleteSnapshot(snapshot_pb2.DeleteSnapshotRequest(name=name))
    assert len(pair.give.fixture.host.facts.names("peer")) == 2
    assert len(pair.give.fixture.host.facts.names("cut")) == 2  # held
    await pair.replicate()
    assert pair.is_same()
    assert len(kept(pair)) == 2
    assert len(pair.give.fixture.host.facts.names("cut")) == 1
    await root.volumes.EndReplication(END)
    assert (kept(pair), taken(pair)) == ([], [])
    await root.volumes.DeleteVolume(DELETE)


async def test_a_lost_record_costs_no_transfer_of_the_whole(pair: ReplicaPair) -> None:
    for number in range(9):
        pair.write(number, f"block {number}")
    await pair.replicate()
    before = kept(pair)
    lose(pair, record(pair))
    lose_snapshot(pair, pair.give.read(lambda txn: next(txn.scan(Snapshot))))
    pair.write(3, "changed")
    shown = await pair.replicate(validate_only=True)
    assert "what changed" in str(shown.operation.actions)
    await pair.replicate()
    assert pair.is_same()
    assert len(kept(pair)) == 2
    assert not set(kept(pair)) & set(before)
    lose(pair, record(pair))
    await pair.give.root().volumes.EndReplication(END)
    assert kept(pair) == []


async def test_a_store_of_an_older_day_goes_on(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    await pair.replicate()
    old, snapshot = record(pair), pair.give.read(lambda txn: next(txn.scan(Snapshot)))
    dependent = pair.give.read(
        lambda txn: txn.get(Dependent, f"{snapshot.volume_uid}/snapshots/{snapshot.id}")
    )
    for text in "bc":
        pair.write(1, text)
        await pair.replicate()
    newest = pair.give.read(lambda txn: next(txn.scan(Snapshot)))
    lose_snapshot(pair, newest)
    # The number after the recorded one has a snapshot that the pool does not have any more.
    stale = snapshot.but(id="replica-data-other-2", uid="7" * 32, revision=0)
    name = f"snapshots/{stale.id}"
    mark = Dependent(id=f"{stale.volume_uid}/{name}", name=name)
    restore(pair, old, snapshot, dependent, stale, mark)
    pair.write(1, "d")
    await pair.replicate()
    assert pair.is_same()
    assert taken(pair) == [record(pair).snapshot] == ["replica-data-other-3"]
    assert len(kept(pair)) == 2


async def test_a_snapshot_that_was_destroyed_by_hand(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    await pair.replicate()
    facts, known = pair.give.fixture.host.facts, record(pair)
    # Its bookmark is enough.
    facts.effect(f"peer:{pair.volume().uid}/{known.snapshot_uid}/other", None)
    facts.effect(f"cut:{known.snapshot_uid}", None)
    pair.write(1, "b")
    await pair.replicate()
    assert pair.is_same()
    assert (len(taken(pair)), len(kept(pair))) == (1, 2)
    # Without both there is nothing in common, and no snapshot is taken in vain.
    for name in kept(pair):
        facts.effect(f"peer:{name}" if name.endswith("/other") else f"bookmark:{name}", None)
    facts.effect(f"cut:{record(pair).snapshot_uid}", None)
    before = taken(pair)
    with refused("FAILED_PRECONDITION", "NO_COMMON_SNAPSHOT"):
        await pair.replicate()
    assert taken(pair) == before
    await pair.other.root().volumes.DeleteVolume(DELETE)
    await pair.replicate()
    assert pair.is_same()
    assert (len(taken(pair)), len(kept(pair))) == (1, 2)


async def test_a_snapshot_of_a_caller_is_never_one_of_the_replication(pair: ReplicaPair) -> None:
    root = pair.give.root()
    own = ["replica-data-other-1", "replica-data-other-3"]
    for name in own:
        await root.snapshots.CreateSnapshot(
            snapshot_pb2.CreateSnapshotRequest(snapshot_id=name, volume=DATA)
        )
    for text in "abc":
        pair.write(0, text)
        await pair.replicate()
        assert pair.is_same()
        assert set(taken(pair)) == {*own, record(pair).snapshot}
    assert record(pair).snapshot == "replica-data-other-5"
    await root.volumes.EndReplication(END)
    assert taken(pair) == own


async def test_an_adopted_snapshot_is_still_one_of_the_replication(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    await pair.replicate()
    lose_snapshot(pair, pair.give.read(lambda txn: next(txn.scan(Snapshot))))
    requests, _problems = await unknown_snapshots(pair.give.service.context)
    for request in requests:
        await pair.give.fixture.do(request)
    await pair.replicate()
    assert taken(pair) == [record(pair).snapshot]


async def test_a_bookmark_that_was_destroyed_by_hand(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    await pair.replicate()
    facts, known = pair.give.fixture.host.facts, record(pair)
    facts.effect(f"bookmark:{pair.volume().uid}/{known.snapshot_uid}", None)
    pair.write(1, "b")
    await pair.replicate()
    assert pair.is_same()
    assert (len(taken(pair)), len(kept(pair))) == (1, 2)


async def test_a_pool_that_was_rolled_back(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    await pair.replicate()
    facts = pair.give.fixture.host.facts
    names = ("cut", "peer", "bookmark", "blocks")
    before = {f"{kind}:{name}": one for kind in names for name, one in facts.of_kind(kind).items()}
    pair.write(1, "b")
    await pair.replicate()
    for kind in names:
        for name in facts.names(kind):
            facts.effect(f"{kind}:{name}", before.get(f"{kind}:{name}"))
    for name, one in before.items():
        facts.effect(name, one)
    with refused("FAILED_PRECONDITION", "NO_COMMON_SNAPSHOT"):
        await pair.replicate()
    await pair.other.root().volumes.DeleteVolume(DELETE)
    await pair.replicate()
    assert pair.is_same()
    assert len(kept(pair)) == 2


def known_as(pair: ReplicaPair, *names: str) -> None:
    """Let the first server know the other one by more names."""
    pair.known.update(dict.fromkeys(names, pair.known["other"]))


async def test_two_peers_of_one_volume(pair: ReplicaPair) -> None:
    known_as(pair, "second")
    pair.write(0, "a")
    await pair.replicate()
    await pair.other.root().volumes.DeleteVolume(DELETE)  # it is another server
    pair.write(1, "b")
    await pair.replicate(peer="second")
    assert pair.is_same()
    assert taken(pair) == ["replica-data-other-1", "replica-data-second-1"]
    await pair.give.root().volumes.EndReplication(END)
    assert taken(pair) == ["replica-data-second-1"]
    pair.write(2, "c")
    shown = await pair.replicate(peer="second", validate_only=True)
    assert "what changed" in str(shown.operation.actions)
    await pair.replicate(peer="second")
    assert pair.is_same()
    with refused("FAILED_PRECONDITION", "REPLICATED"):
        await pair.give.root().volumes.DeleteVolume(DELETE)


@pytest.mark.parametrize(
    ("volume", "peer"), [("data-x", "y"), ("v" * 128, "p" * 128), ("a.b_c", "z-1")]
)
async def test_names(pair: ReplicaPair, volume: str, peer: str) -> None:
    known_as(pair, "x-y", peer)
    root = pair.give.root()
    await pair.replicate(peer="x-y")
    await root.volumes.CreateVolume(create(volume))
    await pair.replicate(name=f"volumes/{volume}", peer=peer)
    assert len(taken(pair)) == 2
    end = volume_pb2.EndReplicationRequest(name=f"volumes/{volume}", peer=peer)
    await root.volumes.EndReplication(end)
    assert len(taken(pair)) == 1


def test_a_name_of_a_snapshot_is_of_one_replication() -> None:
    volumes = [
        VOLUME.but(id=name, uid=f"{number:032x}")
        for number, name in enumerate(("data", "data-x", "data-x-y", "v" * 128))
    ]
    peers = ("y", "x-y", "other", "p" * 128)
    names = [snapshot_name(volume, peer, 10**19) for volume in volumes for peer in peers]
    assert len({*names}) == len(names)
    assert max(map(len, names)) <= 128
    assert snapshot_name(volumes[0], "other", 3) == "replica-data-other-3"
