"""Replicas that are deleted, or in the way of a volume: nothing of them is lost or used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zfsilo.v1 import volume_pb2

from tests.api.replica_pair import DATASET
from tests.api.running import DATA, create, refused
from zfsilod.model.records import Operation

if TYPE_CHECKING:
    from tests.api.replica_pair import ReplicaPair

DELETE = volume_pb2.DeleteVolumeRequest(name=DATA)


@pytest.mark.parametrize(
    ("fact", "value", "code", "reason"),
    [
        ("backstore:by-hand", {"dataset": DATASET}, "FAILED_PRECONDITION", "EXPORTED_ELSEWHERE"),
        ("user:dd", {"of": DATASET, "kind": "process"}, "ABORTED", "DATASET_BUSY"),
        ("epoch", "7:", "FAILED_PRECONDITION", "ZVOL_NEWER"),
    ],
)
async def test_a_replica_in_use_keeps_its_data(
    pair: ReplicaPair, fact: str, value: object, code: str, reason: str
) -> None:
    pair.write(0, "a")
    await pair.replicate()
    facts, before = pair.other.fixture.host.facts, pair.zvol()
    if fact == "epoch":
        marks = before["properties"] | {"zfsilo:epoch": value}
        before = before | {"properties": marks}
        facts.effect(f"zvol:{DATASET}", before)
    else:
        facts.effect(fact, value)
    with refused(code, reason):
        await pair.other.root().volumes.DeleteVolume(DELETE)
    assert pair.zvol() == before
    assert pair.is_same()
    operations = pair.other.read(lambda txn: [one.state for one in txn.scan(Operation)])
    assert "NEEDS_REPAIR" not in operations
    if fact != "epoch":
        facts.effect(fact, None)
        await pair.other.root().volumes.DeleteVolume(DELETE)
        assert (pair.zvol(), pair.replica()) == (None, None)


async def test_no_volume_is_created_over_a_replica(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    await pair.replicate()
    same = create()
    same.volume.ClearField("hosts")
    same.volume.ClearField("transport")
    with refused("ALREADY_EXISTS", "REPLICA"):
        await pair.other.root().volumes.CreateVolume(same)
    assert pair.replica().is_replica
