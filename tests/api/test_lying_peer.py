"""A peer that lies, or sends nonsense: the operation ends, and nothing of it spreads."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from zfsilo.v1 import volume_pb2

from tests.api.running import DATA, refused
from zfsilod.gateway import dial, packets
from zfsilod.gateway.sockets import peer_of
from zfsilod.host.fake.replicas import FakeReplicas
from zfsilod.model.errors import DeadlineExceeded
from zfsilod.model.host_facts import Filesystem
from zfsilod.model.identity import DAEMON, Caller, Certified, Identity, Peer
from zfsilod.model.records import Operation
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.receive import ReceiveReplica
from zfsilod.service import replication
from zfsilod.service.stream_socket import StreamSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.replica_pair import ReplicaPair
    from zfsilod.model.replica import ReplicaFacts

HELD = "f" * 32  # the uid of no volume


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


async def test_why_a_receive_failed_has_bounds(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.write(0, "a")

    def problem(_streams: StreamSocket, _volume: str) -> tuple[str, str]:
        return "full\0" + "x" * 500_000, "Q" * 50_000

    find = FakeReplicas.find

    def without(replicas: FakeReplicas, dataset: str, *, uid: str) -> ReplicaFacts:
        return find(replicas, dataset, uid=uid).but(guid="", token="")

    monkeypatch.setattr(FakeReplicas, "find", without)
    monkeypatch.setattr(StreamSocket, "problem", problem)
    with refused("FAILED_PRECONDITION", "FAILED_PRECONDITION") as refusal:
        await pair.replicate()
    assert refusal.error.message.startswith("other: full\\x00xxx")
    stored = pair.give.read(lambda txn: [one.failure for one in txn.scan(Operation)])
    (failure,) = [one for one in stored if one is not None]
    assert len(failure.message) + len(failure.reason) < 1200


BODIES = (b'{"code": Infinity}\n', b"[" * 60_000, b"\xff" * 60_000, b'{"code":8,"message":"', b"")


async def test_nonsense_of_a_peer_ends_the_operation(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.write(0, "a")
    peers: list[socket.socket] = []
    bodies = iter([body for body in BODIES for _attempt in range(2)])

    def connected(_access: Any) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.sendall(b"HTTP/1.1 500 No\r\n\r\n" + next(bodies))
        theirs.shutdown(socket.SHUT_WR)
        peers.append(theirs)
        return ours

    monkeypatch.setattr(dial, "connected", connected)
    monkeypatch.setattr(replication, "ATTEMPTS_PAUSE_S", (0.0,))
    for _body in BODIES:
        with refused("UNAVAILABLE", "SERVER_UNAVAILABLE"):
            await pair.replicate()
    assert len(peers) == 2 * len(BODIES)
    for peer in peers:
        peer.close()


PACKETS = (
    b"[" * 60_000,
    b"{",
    b"7",
    b"{}",
    b'{"tell": []}',
    b'{"tell": "sent"}',
    b'{"tell": "sent", "bytes": 1e400}',
    b'{"tell": "sent", "bytes": -1}',
    b'{"tell": "sent", "bytes": 9223372036854775808}',
    b'{"tell": "refused", "status": 500}',
)


async def test_nonsense_of_the_process_with_the_connection_is_an_end(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.write(0, "a")
    left = iter(PACKETS)

    def run(daemon: socket.socket) -> None:
        daemon.send(next(left))

    monkeypatch.setattr(dial, "run", run)
    monkeypatch.setattr(replication, "ATTEMPTS_PAUSE_S", ())
    for _packet in PACKETS:
        with refused("UNAVAILABLE", "STREAM_CUT"):
            await pair.replicate()
    assert next(left, None) is None


TOKENS: tuple[tuple[Callable[[int], str], int], ...] = (
    (lambda _cuts: "1-aa", 5),
    (lambda cuts: f"1-{cuts:02x}", 12),
    (lambda cuts: f"1-{cuts // 3:02x}", 12),
    (lambda cuts: f"1-{min(cuts, 3):02x}", 8),
)


async def test_attempts_end_unless_the_peer_has_more(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.write(0, "a")
    await pair.replicate()
    find = FakeReplicas.find
    counted = Counter[str]()

    def cut(carrier: dial.Carrier, _peer: Any) -> None:
        counted["cuts"] += 1
        packets.send(carrier.daemon, {"tell": "sent", "bytes": 1 << 40})
        if counted["cuts"] > 20:
            raise dial.Refused(500, b"there was no end")
        raise ConnectionResetError("cut by the test")

    monkeypatch.setattr(replication, "ATTEMPTS_PAUSE_S", (0.0,) * 4)
    monkeypatch.setattr(replication, "MOST_ATTEMPTS", 12)
    monkeypatch.setattr(dial.Carrier, "carry", cut)
    pair.write(1, "b")
    for token_of, expected in TOKENS:

        def found(
            replicas: FakeReplicas,
            dataset: str,
            *,
            uid: str,
            token_of: Callable[[int], str] = token_of,
        ) -> ReplicaFacts:
            return find(replicas, dataset, uid=uid).but(token=token_of(counted["cuts"]))

        counted.clear()
        monkeypatch.setattr(FakeReplicas, "find", found)
        with refused("UNAVAILABLE", "STREAM_CUT"):
            await pair.replicate()
        assert counted["cuts"] == expected


async def test_one_name_in_another_credential_is_another_peer(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    await pair.replicate()
    other, uid = pair.other, pair.volume().uid
    asked = volume_pb2.GetReplicaRequest(name=DATA, uid=uid)
    assert (await other.role("replica", "give").volumes.GetReplica(asked)).peer == "give"
    with refused("NOT_FOUND"):
        await other.bearer(other.token("replica", "give")).volumes.GetReplica(asked)
    identity = Identity(kind="user", id="give", role="replica")
    own = Certified(identity=identity, fingerprint="", not_after=1 << 40, own=True)
    caller = Caller(role="replica", subject="give", origin="tcp")
    names = [
        caller.but(certificate=own),
        caller.but(certificate=own.but(own=False)),
        caller.but(token="01jd"),
    ]
    assert [one.peer for one in names] == ["give", "imported/give", "token/give"]
    assert len({one.rights for one in names}) == 3
    peers = [Peer(kind="tcp", address="a", certificate=one.certificate) for one in names[:2]]
    assert len({one.quota_key for one in peers}) == 2


def offer(volume_id: str, uid: str) -> volume_pb2.ReceiveReplicaRequest:
    """Return a request to receive a volume, which is only planned."""
    return volume_pb2.ReceiveReplicaRequest(
        name=f"volumes/{volume_id}",
        uid=uid,
        capacity_bytes=1 << 30,
        volblocksize=16384,
        mode=volume_pb2.MODE_BLOCK,
        filesystem=volume_pb2.Filesystem(state=volume_pb2.FILESYSTEM_STATE_NONE),
        snapshot_uid="d" * 32,
        snapshot_guid="18",
        validate_only=True,
    )


async def test_a_peer_learns_nothing_of_the_volumes_of_others(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    await pair.replicate()
    facts = pair.other.fixture.host.facts
    facts.effect("zvol:tank/zfsilo/foreign", pair.zvol() | {"uid": "e" * 32})
    stranger = pair.other.role("replica", "another").volumes
    uid = pair.volume().uid
    for volume_id, claimed in (("data", HELD), ("new", uid), ("foreign", HELD)):
        with refused("ALREADY_EXISTS", "OTHER_VOLUME") as refusal:
            await stranger.ReceiveReplica(offer(volume_id, claimed))
        said = refusal.error.message.replace(volume_id, "")
        assert not [name for name in ("give", "tank", "data", "foreign") if name in said]
        assert refusal.error.facts == {"volume": volume_id}
    with refused("FAILED_PRECONDITION", "NOT_OURS"):
        await pair.other.root().volumes.ReceiveReplica(offer("foreign", HELD))


async def test_a_peer_waits_for_operations_on_its_own_replicas_only(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.write(0, "a")
    await pair.replicate()
    service, uid = pair.other.service, pair.volume().uid
    launcher = pair.other.fixture.launcher
    launcher.gate.clear()
    give = Caller(role="replica", subject="give", origin="")
    first = ReceiveReplica(
        id="new",
        peer="give",
        uid=HELD,
        capacity_bytes=1 << 30,
        volblocksize=16384,
        mode="BLOCK",
        filesystem=Filesystem(),
        snapshot_uid="d" * 32,
        snapshot_guid="18",
    )
    waited: list[str] = []

    async def ended(operation_id: str, _timeout_s: float) -> Any:
        waited.append(operation_id)
        raise DeadlineExceeded("the test does not wait")

    with monkeypatch.context() as only_now:
        receives = await service.submit(first, caller=give)
        deletes = await service.submit(DeleteVolume(id="data"), caller=DAEMON)
        only_now.setattr(service, "ended", ended)
        for subject, volume_id, claimed in (
            ("another", "data", uid),
            ("another", "new", HELD),
            ("give", "data", HELD),
            ("give", "new", HELD),
            ("give", "data", uid),
        ):
            asked = volume_pb2.GetReplicaRequest(
                name=f"volumes/{volume_id}", uid=claimed, wait=True
            )
            with suppress(grpc.aio.AioRpcError):
                await pair.other.role("replica", subject).volumes.GetReplica(asked)
    assert waited == [receives.id, deletes.id]
    launcher.gate.set()
    await service.ended(deletes.id, 60)


def test_a_connection_ends_a_minute_after_its_other_host() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        peer_of(accepted, "tcp")
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle, pause, probes = (accepted.getsockopt(socket.IPPROTO_TCP, one) for one in options)
        assert idle + pause * probes <= 60


async def test_a_snapshot_of_no_date_is_refused(pair: ReplicaPair) -> None:
    request = volume_pb2.ReceiveReplicaRequest(
        name=DATA, mode=volume_pb2.MODE_BLOCK, validate_only=True
    )
    request.filesystem.state = volume_pb2.FILESYSTEM_STATE_NONE
    for seconds in (-1, 1 << 62):
        request.snapshot_time.seconds = seconds
        with refused("INVALID_ARGUMENT", "BAD_REPLICA") as refusal:
            await pair.other.role("replica", "give").volumes.ReceiveReplica(request)
        assert "time" in refusal.error.message


def slow_answer(peer: socket.socket, stop: threading.Event) -> None:
    """Send the head of an answer byte by byte, without an end."""
    with suppress(OSError):
        while not stop.wait(0.05):
            peer.sendall(b"x")


def test_an_answer_byte_by_byte_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "ANSWER_S", 0.5)
    own, peer = socket.socketpair()
    stop = threading.Event()
    feeder = threading.Thread(target=slow_answer, args=(peer, stop), daemon=True)
    access = {"path": "/", "body": "{}", "token": "", "tls_name": "x"}
    connection: Any = own
    with own, peer:
        feeder.start()
        with pytest.raises(TimeoutError):
            dial.ask(connection, access)
        stop.set()
        feeder.join(20)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 \r\nUpgrade:"])
def test_an_answer_that_ends_in_its_head(answer: bytes) -> None:
    own, peer = socket.socketpair()
    connection: Any = own
    with own, peer:
        peer.sendall(answer)
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionAbortedError, match="before its answer"):
            dial.ask(connection, {"path": "/", "body": "{}", "token": "", "tls_name": "x"})


async def test_many_words_of_the_process_with_the_connection_hold_up_nothing(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads what the peer sends, so it may be the peer's."""
    pair.write(0, "a")
    words, turns = 50, Counter[int]()
    noted: list[int] = []
    all_sent = threading.Event()

    def carry(carrier: dial.Carrier, _peer: Any) -> None:
        for number in range(words):
            packets.send(carrier.daemon, {"tell": "sent", "bytes": number})
        all_sent.set()
        raise ConnectionResetError("cut by the test")

    def note(_replicator: replication.Replicator, _operation: str, sent: int, *_: Any) -> None:
        all_sent.wait(20)  # so that none has to be awaited
        noted.append(sent)
        asyncio.get_running_loop().call_soon(lambda: turns.update([len(noted)]))

    monkeypatch.setattr(dial.Carrier, "carry", carry)
    monkeypatch.setattr(replication.Replicator, "note", note)
    monkeypatch.setattr(replication, "ATTEMPTS_PAUSE_S", ())
    with refused("UNAVAILABLE", "STREAM_CUT"):
        await pair.replicate()
    assert noted == [*range(words)]
    assert len(turns) == words, "others have a turn after each"
