"""A peer that lies, or sends nonsense: the operation ends, and nothing of it spreads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zfsilo.v1 import volume_pb2

from tests.api.running import DATA, refused
from zfsilod.host.fake.replicas import FakeReplicas

if TYPE_CHECKING:
    from tests.api.replica_pair import ReplicaPair
    from zfsilod.model.replica import ReplicaFacts


async def test_a_token_that_is_none_reaches_no_process(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.write(0, "a")
    await pair.replicate()
    find = FakeReplicas.find

    def lying(replicas: FakeReplicas, dataset: str, *, uid: str) -> ReplicaFacts:
        return find(replicas, dataset, uid=uid).but(token="1-e3\0")

    pair.write(1, "b")
    with monkeypatch.context() as only_now:
        only_now.setattr(FakeReplicas, "find", lying)
        with refused("FAILED_PRECONDITION", "BAD_ANSWER"):
            await pair.replicate()
    await pair.replicate()
    assert pair.is_same()


@pytest.mark.parametrize("seconds", [-1, 1 << 62])
async def test_a_snapshot_of_no_date_is_refused(pair: ReplicaPair, seconds: int) -> None:
    request = volume_pb2.ReceiveReplicaRequest(
        name=DATA, mode=volume_pb2.MODE_BLOCK, validate_only=True
    )
    request.filesystem.state = volume_pb2.FILESYSTEM_STATE_NONE
    request.snapshot_time.seconds = seconds
    with refused("INVALID_ARGUMENT", "BAD_REPLICA") as refusal:
        await pair.other.role("replica", "give").volumes.ReceiveReplica(request)
    assert "time" in refusal.error.message
