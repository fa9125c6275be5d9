"""The rate of a stream is changed while it runs: by its policy, by hand, and in its process."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from zfsilo.v1 import replication_pb2 as pb

from tests.api.running import create, refused
from tests.service_fixture import DEADLINE_S
from zfsilod.gateway import dial, packets
from zfsilod.model.replica import MIN_RATE, Replication
from zfsilod.service import replication

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.replica_pair import ReplicaPair
    from zfsilod.model.records import Operation

NAME = "replicationPolicies/slow"
MIB = 1 << 20


class Line:
    """A process that carries a stream, on a clock that only its waits move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
        self.daemon, own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.source, stream = socket.socketpair()
        self.peer, sink = socket.socketpair()
        self.sockets = (self.daemon, own, self.source, stream, self.peer, sink)
        self.carrier = dial.Carrier(own, stream, rate)
        self.told: dict[float, dict[str, Any]] = {}  # what the daemon tells, and when
        self.time = 0.0
        self._sink = sink
        self._counts: list[tuple[float, int]] = []
        clock = SimpleNamespace(monotonic=lambda: self.time)
        monkeypatch.setattr(dial, "time", clock)
        monkeypatch.setattr(dial, "select", SimpleNamespace(select=self._select))

    def _select(self, readers: Any, _writers: Any, _urgent: Any, seconds: float) -> Any:
        self._counts.append((self.time, self.carrier.sent))
        for at in [at for at in self.told if at <= self.time + seconds]:
            packets.send(self.daemon, self.told.pop(at))
            self.time = max(self.time, at)
            return select.select(readers, [], [], 0)
        self.time += seconds
        return select.select(readers, [], [], 0)

    def carry(self, size: int) -> None:
        """Carry so many bytes to the end."""
        feeder = threading.Thread(target=self._feed, args=(size,), daemon=True)
        reader = threading.Thread(target=self._drain, daemon=True)
        feeder.start()
        reader.start()
        ending: Any = SimpleNamespace(
            settimeout=lambda _s: None,
            sendall=self._sink.sendall,
            unwrap=lambda: self._sink.shutdown(socket.SHUT_WR),
        )
        try:
            self.carrier.carry(ending)
        finally:
            for one in self.sockets:
                one.close()
            feeder.join(DEADLINE_S)
            reader.join(DEADLINE_S)

    def sent_by(self, at: float) -> int:
        """Return how many bytes were sent until a time."""
        return max(sent for time, sent in self._counts if time <= at)

    def _feed(self, size: int) -> None:
        try:
            self.source.sendall(bytes(size))
            self.source.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the test has ended it

    def _drain(self) -> None:
        try:
            while self.peer.recv(MIB):
                pass
        except OSError:
            pass


def about(count: int, expected: int) -> bool:
    return abs(count - expected) <= expected // 10 + 65536


def test_the_process_keeps_the_rate_that_the_daemon_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch, MIB)
    line.told = {
        4.0: {"tell": "rate", "bytes": 4 * MIB},
        8.0: {"tell": "rate", "bytes": 65536},
        16.0: {"tell": "rate", "bytes": 0},
    }
    line.carry(32 * MIB)
    assert about(line.sent_by(4.0), 4 * MIB)
    assert about(line.sent_by(8.0), 20 * MIB)
    assert about(line.sent_by(16.0), 20 * MIB + 8 * 65536)
    assert line.time < 17  # the rest without a limit
    assert line.carrier.sent == 32 * MIB


def test_a_stream_without_a_limit_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch, 0)
    line.told = {0.0: {"tell": "rate", "bytes": MIB}}
    line.carry(4 * MIB)
    assert line.time > 3


@pytest.mark.parametrize(
    "told",
    [
        {"tell": "rate", "bytes": 1},
        {"tell": "rate", "bytes": -1},
        {"tell": "rate", "bytes": "65536"},
        {"tell": "rate"},
        {"tell": "stream"},
    ],
)
def test_another_word_ends_the_stream(monkeypatch: pytest.MonkeyPatch, told: Any) -> None:
    line = Line(monkeypatch, MIB)
    line.told = {1.0: told}
    with pytest.raises(ConnectionAbortedError, match="nonsense"):
        line.carry(4 * MIB)


def test_a_packet_that_is_none_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch, MIB)
    line.daemon.send(json.dumps([]).encode())
    with pytest.raises(ConnectionAbortedError, match="not a packet"):
        line.carry(4 * MIB)


def rates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the rates of the processes of streams, as they change."""
    seen: list[int] = []
    hear, carry = dial.Carrier.hear, dial.Carrier.carry

    def heard(carrier: dial.Carrier) -> None:
        hear(carrier)
        seen.append(carrier.rate)

    def carried(carrier: dial.Carrier, peer: Any) -> None:
        seen.append(carrier.rate)
        carry(carrier, peer)

    monkeypatch.setattr(dial.Carrier, "hear", heard)
    monkeypatch.setattr(dial.Carrier, "carry", carried)
    monkeypatch.setattr(replication, "LOOK_S", 0.05)
    return seen


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():
            await asyncio.sleep(0.01)


def fill(pair: ReplicaPair) -> None:
    """Write what a stream with the least rate sends in a minute."""
    for number in range(4):
        pair.write(number, str(number) * MIB)


def running(pair: ReplicaPair) -> list[Operation]:
    live = pair.give.read(lambda txn: list(txn.live()))
    return [one for one in live if one.kind == "replicate"]


async def update(pair: ReplicaPair, rate: int) -> None:
    await pair.give.root().replications.UpdateReplicationPolicy(
        pb.UpdateReplicationPolicyRequest(
            policy=pb.ReplicationPolicy(name=NAME, bytes_per_second=rate),
            update_mask=FieldMask(paths=["bytes_per_second"]),
        )
    )


async def policy(pair: ReplicaPair, rate: int) -> asyncio.Task[Any]:
    """Create a policy of all volumes, and begin a run."""
    root = pair.give.root()
    made = pb.ReplicationPolicy(peer="other", calendar="daily", bytes_per_second=rate)
    await root.replications.CreateReplicationPolicy(
        pb.CreateReplicationPolicyRequest(policy_id="slow", policy=made)
    )
    run = root.replications.RunReplicationPolicy(pb.RunReplicationPolicyRequest(name=NAME))
    return asyncio.ensure_future(run)


async def test_the_rate_of_a_policy_counts_for_the_run_in_progress(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(pair)
    seen = rates(monkeypatch)
    run = await policy(pair, MIN_RATE)
    await until(lambda: seen == [MIN_RATE])
    await update(pair, 2 * MIN_RATE)
    await until(lambda: seen == [MIN_RATE, 2 * MIN_RATE])
    await update(pair, 0)
    await run
    assert seen == [MIN_RATE, 2 * MIN_RATE, 0]
    assert pair.is_same()


async def test_the_streams_of_a_policy_share_its_rate(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(pair)
    await pair.give.root().volumes.CreateVolume(create("log"))
    facts = pair.give.fixture.host.facts
    uid = facts.get("zvol:tank/zfsilo/log")["uid"]
    facts.effect(f"blocks:{uid}", {str(number): "x" * MIB for number in range(4)})
    seen = rates(monkeypatch)
    holding = threading.Event()
    carry = dial.Carrier.carry

    def held(carrier: dial.Carrier, peer: Any) -> None:
        holding.wait(DEADLINE_S)
        carry(carrier, peer)

    monkeypatch.setattr(dial.Carrier, "carry", held)
    run = await policy(pair, 0)  # two at a time
    await until(lambda: len(running(pair)) == 2 and not seen)
    await update(pair, 8 * MIN_RATE)
    holding.set()
    await until(lambda: seen.count(4 * MIN_RATE) == 2)
    await update(pair, 0)
    await run


async def test_a_second_call_changes_the_rate_of_the_running_one(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(pair)
    seen = rates(monkeypatch)
    first = asyncio.ensure_future(pair.replicate(bytes_per_second=MIN_RATE))
    await until(lambda: seen == [MIN_RATE])
    (operation,) = running(pair)
    second = asyncio.ensure_future(pair.replicate())  # it says nothing of the rate
    with refused("INVALID_ARGUMENT", "BAD_RATE"):
        await pair.replicate(bytes_per_second=-1)
    with refused("INVALID_ARGUMENT", "BAD_RATE"):
        await pair.replicate(bytes_per_second=MIN_RATE - 1)
    await asyncio.sleep(0.2)
    assert seen == [MIN_RATE]
    third = asyncio.ensure_future(pair.replicate(bytes_per_second=0))
    done = [(await call).operation.name for call in (first, second, third)]
    assert done == [f"operations/{operation.id}"] * 3
    assert seen == [MIN_RATE, 0]
    known = pair.give.read(lambda txn: next(txn.scan(Replication)))
    assert (known.number, known.rate_of) == (1, "")
    # It counts for that operation only.
    del seen[:]
    await pair.replicate(bytes_per_second=4 * MIN_RATE)
    assert seen == [4 * MIN_RATE]
