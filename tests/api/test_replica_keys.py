"""Replicas of encrypted volumes, whose key is replaced while the replica is behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilo.v1 import volume_pb2

from tests.api.replica_pair import DATASET
from tests.api.running import create, refused
from tests.api.test_replication import CutAfter
from zfsilod.model.disk_key import CURRENT, DiskKey
from zfsilod.service import replication

if TYPE_CHECKING:
    import pytest

    from tests.api.replica_pair import ReplicaPair

SECRET = "volumes/secret"
REPLICA = DATASET.replace("data", "secret")
ROTATE = volume_pb2.RotateVolumeKeyRequest(name=SECRET)


def present(pair: ReplicaPair) -> DiskKey:
    """Return the key that the server which sends has now."""
    uid = pair.give.fixture.host.facts.get(f"zvol:{REPLICA}")["uid"]
    key: DiskKey = pair.give.service.context.store.disk_key(uid, CURRENT)
    return key


def opens(pair: ReplicaPair, key: DiskKey) -> bool:
    """Tell whether a key opens the replica."""
    return bool(pair.other.fixture.host.keys.opens(REPLICA, key))


def write(pair: ReplicaPair, count: int) -> None:
    facts = pair.give.fixture.host.facts
    uid = facts.get(f"zvol:{REPLICA}")["uid"]
    facts.effect(f"blocks:{uid}", {str(number): f"block {count} {number}" for number in range(9)})


async def begin(pair: ReplicaPair) -> DiskKey:
    """Create an encrypted volume, send it, and return its key."""
    await pair.give.root().volumes.CreateVolume(create("secret", encrypted=True))
    write(pair, 1)
    await pair.replicate(name=SECRET)
    key = present(pair)
    assert opens(pair, key)
    return key


async def test_a_new_key_reaches_the_replica_with_the_next_snapshot(pair: ReplicaPair) -> None:
    former = await begin(pair)
    await pair.give.root().volumes.RotateVolumeKey(ROTATE)
    assert opens(pair, former)  # the replica is behind
    assert not opens(pair, present(pair))
    await pair.replicate(name=SECRET)  # nothing else has changed
    assert not opens(pair, former)
    assert opens(pair, present(pair))


async def test_a_key_that_is_replaced_between_two_parts_of_a_stream(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = await begin(pair)
    write(pair, 2)
    with monkeypatch.context() as only_now:
        only_now.setattr(replication, "ATTEMPTS_PAUSE_S", ())
        CutAfter(only_now, 500)
        with refused("UNAVAILABLE", "STREAM_CUT"):
            await pair.replicate(name=SECRET)
    await pair.give.root().volumes.RotateVolumeKey(ROTATE)
    await pair.give.root().volumes.RotateVolumeKey(ROTATE)
    assert opens(pair, former)
    await pair.replicate(name=SECRET)
    assert not opens(pair, former)
    assert opens(pair, present(pair))
    facts = pair.other.fixture.host.facts
    uid = facts.get(f"zvol:{REPLICA}")["uid"]
    assert facts.get(f"replica-blocks:{uid}")["3"] == "block 2 3"
