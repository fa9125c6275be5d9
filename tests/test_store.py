"""The store: two processes, SIGKILL in a transaction, a full map, damage, schemas, claims."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.examples import PLANS, VOLUME, operation
from tests.service_fixture import service_fixture
from zfsilod.model.disk_key import DiskKey
from zfsilod.model.errors import (
    Busy,
    FailedPrecondition,
    ResourceExhausted,
    StoreCorrupt,
)
from zfsilod.model.records import Operation, Volume
from zfsilod.requests.volumes import CreateVolume
from zfsilod.storage.store import HEAD_ROOM, SCHEMA, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 1 << 30
SMALL_BYTES = 1 << 20
DEADLINE_S = 20
COUNTS = 200
FEW = 20  # while a reader is open no page is used again, and the map fills
OPEN = "import sys; from pathlib import Path; from zfsilod.storage.store import Store; "
# Counts a number up in the store; a lost update would be a missing count.
COUNT = OPEN + (
    "store = Store(Path(sys.argv[1]))\n"
    "for _round in range(int(sys.argv[2])):\n"
    "    with store.write() as txn:\n"
    "        txn.put_raw('meta', 'count', b'%d' % (int(txn.get_raw('meta', 'count') or 0) + 1))\n"
)
# Changes a value, and waits inside the transaction until it is killed.
HOLD_TRANSACTION = OPEN + (
    "store = Store(Path(sys.argv[1]))\n"
    "with store.write() as txn:\n"
    "    txn.put_raw('meta', 'count', b'7')\n"
    "    print('open', flush=True)\n"
    "    sys.stdin.read()\n"
)
HOLD_READER = HOLD_TRANSACTION.replace("store.write()", "store.read()").replace(
    "    txn.put_raw('meta', 'count', b'7')\n", ""
)
PUBLISH = next(example for example in PLANS if example.name == "publish")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A new store of a simulated host."""
    store = create(tmp_path)
    yield store
    store.close()


def create(directory: Path) -> Store:
    return Store.create(directory, host="simulated", size_bytes=SMALL_BYTES, durable=False)


@contextmanager
def process(code: str, store: Store, rounds: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python code with the directory of the store and a number as its arguments."""
    argv = [sys.executable, "-c", code, store.directory, str(rounds)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()


def count(store: Store) -> int:
    with store.read() as txn:
        return int(txn.get_raw("meta", "count") or b"0")


def test_two_processes_lose_no_update(store: Store) -> None:
    with process(COUNT, store, COUNTS) as one, process(COUNT, store, COUNTS) as other:
        assert (one.wait(DEADLINE_S), other.wait(DEADLINE_S)) == (0, 0)
    assert count(store) == 2 * COUNTS


def test_a_read_transaction_keeps_its_view(store: Store) -> None:
    with store.read() as txn, process(COUNT, store, FEW) as writer:
        assert txn.get_raw("meta", "count") is None
        assert writer.wait(DEADLINE_S) == 0
        assert txn.get_raw("meta", "count") is None
    assert count(store) == FEW


def test_a_write_transaction_is_undone_when_its_process_is_killed(store: Store) -> None:
    with process(HOLD_TRANSACTION, store) as writer:
        kill_in_transaction(writer)
        with store.write() as txn:  # the lock of a dead process does not block
            assert txn.get_raw("meta", "count") is None
            txn.put_raw("meta", "count", b"1")
    assert count(store) == 1


def test_the_readers_of_killed_processes_do_not_fill_the_table(store: Store) -> None:
    for _round in range(3):
        with process(HOLD_READER, store) as reader:
            kill_in_transaction(reader)
    store.close()
    again = Store(Path(store.directory))  # opening the store clears their slots
    with again.read() as txn:
        assert txn.schema() == SCHEMA
    again.close()


def kill_in_transaction(running: subprocess.Popen[bytes]) -> None:
    assert running.stdout is not None
    assert running.stdout.readline() == b"open\n"
    running.send_signal(signal.SIGKILL)
    assert running.wait(DEADLINE_S) == -signal.SIGKILL


def test_an_exception_undoes_the_transaction(store: Store) -> None:
    with suppress(Busy), store.write() as txn:
        txn.put(VOLUME)
        raise Busy("refused")
    with store.read() as txn:
        assert txn.get(Volume, VOLUME.id) is None
        assert txn.promised() == 0


def test_a_full_map_undoes_the_transaction_and_can_be_read(store: Store) -> None:
    with store.write() as txn:
        txn.put(VOLUME)
    with pytest.raises(ResourceExhausted, match="the store is full") as refused:
        fill(store)
    assert refused.value.reason == "STORE_FULL"
    with store.read() as txn:
        assert txn.get(Volume, VOLUME.id) is not None
        assert list(txn.items(b"filler/")) == []
    with store.write() as txn:
        txn.put(VOLUME.but(id="more"))


def fill(store: Store) -> None:
    with store.write() as txn:
        for number in range(SMALL_BYTES // 1000):
            txn.put_raw("filler", str(number), bytes(4000))


def test_a_nearly_full_store_finishes_operations_and_starts_none(store: Store) -> None:
    with store.write() as txn:
        running = txn.add_operation(operation(PUBLISH))
    number = 0
    while store.used() <= HEAD_ROOM:
        with store.write() as txn:
            txn.put_raw("filler", str(number), bytes(4000))
        number += 1
    with pytest.raises(ResourceExhausted, match=r"raise store\.size_bytes"):
        store.check_head_room()
    with store.write() as txn:
        assert txn.finish(running, "DONE").state == "DONE"


async def test_the_service_refuses_requests_for_a_nearly_full_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service_fixture(tmp_path) as fixture:
        monkeypatch.setattr(fixture.service.context.store, "used", lambda: 0.95)
        with pytest.raises(ResourceExhausted, match="store is full"):
            await fixture.do(CreateVolume(id="data", capacity_bytes=GIB))


@pytest.mark.parametrize("left", [0, 100, 2 * 4096])
def test_a_truncated_store_is_refused_and_not_replaced(store: Store, left: int) -> None:
    store.close()
    data = Path(store.directory) / "store" / "data.mdb"
    with data.open("r+b") as file:
        file.truncate(left)
    with pytest.raises(StoreCorrupt, match="rebuild it from the pool with zfsiloctl adopt --all"):
        create(Path(store.directory))
    assert data.stat().st_size == left


def test_a_store_of_garbage_is_refused_and_not_replaced(store: Store) -> None:
    store.close()
    data = Path(store.directory) / "store" / "data.mdb"
    data.write_bytes(b"garbage!" * 4096)
    with pytest.raises(StoreCorrupt, match="is damaged"):
        create(Path(store.directory))
    assert data.read_bytes() == b"garbage!" * 4096


@pytest.mark.parametrize("raw", [b"{", b'{"is":"Unknown"}', b'{"is":"Volume","id":"data"}'])
def test_a_damaged_record_is_an_error_not_an_absent_record(store: Store, raw: bytes) -> None:
    with store.write() as txn:
        txn.put_raw("volume", "data", raw)
    with store.read() as txn, pytest.raises(StoreCorrupt, match="cannot be decoded"):
        txn.get(Volume, "data")


def test_a_newer_store_is_refused_in_one_clear_sentence(store: Store) -> None:
    set_schema(store, SCHEMA + 1)
    store.close()
    with pytest.raises(FailedPrecondition) as caught:
        create(Path(store.directory))
    assert caught.value.message == (
        f"the store has schema {SCHEMA + 1}, this zfsilo knows {SCHEMA}: install a version that "
        "is at least as new as the one that wrote it"
    )


def test_a_save_is_refused_after_another_version_changed_the_schema(store: Store) -> None:
    set_schema(store, SCHEMA + 1)
    with pytest.raises(FailedPrecondition, match=f"schema {SCHEMA + 1}"), store.write():
        pass


def set_schema(store: Store, schema: int) -> None:
    with store.change() as txn:
        txn.put_raw("meta", "schema", str(schema).encode())


def test_a_store_of_another_kind_of_host_is_refused(store: Store) -> None:
    assert store.host == "simulated"
    store.close()
    with pytest.raises(FailedPrecondition, match="use another state directory") as refused:
        Store.create(Path(store.directory), host="real", size_bytes=SMALL_BYTES)
    assert refused.value.reason == "OTHER_HOST"


def test_a_store_without_schema_and_kind_of_host_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    empty = Store(tmp_path, size_bytes=SMALL_BYTES)
    with pytest.raises(StoreCorrupt):
        empty.check("simulated")
    empty.close()


def test_only_root_reads_the_store(store: Store) -> None:
    folder = Path(store.directory) / "store"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_an_operation_claims_its_resources_until_it_ends(store: Store) -> None:
    with store.write() as txn:
        running = txn.add_operation(operation(PUBLISH))
        claims = running.claims
        assert claims
        assert [txn.claimant(resource) for resource in claims] == [running.id] * len(claims)
        assert [live.id for live in txn.live()] == [running.id]
        other = operation(PUBLISH).but(id="0" * 26, claims=running.claims)
        with pytest.raises(AssertionError, match=f"is claimed by {running.id}"):
            txn.add_operation(other)
    with store.write() as txn:
        done = txn.finish(running, "DONE")
        assert [txn.claimant(resource) for resource in claims] == [None] * len(claims)
        assert list(txn.live()) == []
        assert (done.state, done.ended_at > 0) == ("DONE", True)


def test_an_operation_that_another_process_changed_is_not_overwritten(store: Store) -> None:
    with store.write() as txn:
        first = txn.add_operation(operation(PUBLISH))
        txn.put(first.but(attempts=1))
    with pytest.raises(Busy) as refused, store.write() as txn:
        txn.put(first.but(attempts=2))
    assert refused.value.reason == "CHANGED"
    with store.read() as txn:
        stored = txn.get(Operation, first.id)
    assert stored is not None
    assert stored.attempts == 1


def test_operations_are_read_in_the_order_of_their_last_change(store: Store) -> None:
    with store.write() as txn:
        first = txn.put(operation(PUBLISH).but(id="a"))
        second = txn.put(operation(PUBLISH).but(id="b"))
        first = txn.put(first)
        assert [changed.id for changed in txn.changed_after(0)] == ["b", "a"]
        assert [changed.id for changed in txn.changed_after(second.revision)] == ["a"]
        assert [changed.id for changed in txn.oldest(1)] == ["b"]
        assert txn.revision() == first.revision


def test_thin_volumes_promise_their_size(store: Store) -> None:
    with store.write() as txn:
        txn.put(VOLUME.but(thin=True, capacity_bytes=GIB))
        txn.put(VOLUME.but(id="thick", thin=False))
        assert txn.promised() == GIB
        txn.put(VOLUME.but(thin=True, capacity_bytes=2 * GIB))
        assert txn.promised() == 2 * GIB
        txn.drop("volume", VOLUME.id)
        assert txn.promised() == 0


def test_a_scan_yields_one_class_in_the_order_of_keys(store: Store) -> None:
    with store.write() as txn:
        for name in ("b", "a", "c", "a-b"):
            txn.put(VOLUME.but(id=name))
        txn.put_raw("volumes", "d", b"other bucket")
        assert [volume.id for volume in txn.scan(Volume)] == ["a", "a-b", "b", "c"]
        assert [volume.id for volume in txn.scan(Volume, after="a-b")] == ["b", "c"]
        assert [volume.id for volume in txn.scan(Volume, after="aa")] == ["b", "c"]


def test_a_key_that_is_too_long_for_lmdb_is_hashed(store: Store) -> None:
    path = "/srv/" + "x" * 4000
    with store.write() as txn:
        txn.put_raw("claim", path, b"one")
        txn.put_raw("claim", f"{path}y", b"other")
    with store.read() as txn:
        assert (txn.claimant(path), txn.claimant(f"{path}y")) == ("one", "other")


def test_only_a_store_without_secrets_gets_a_key(tmp_path: Path) -> None:
    """A second one would hide that the first is missing."""
    Store.create(tmp_path, host="simulated", size_bytes=SMALL_BYTES).close()
    key = tmp_path / "key"
    worker = Store(tmp_path)
    with pytest.raises(StoreCorrupt, match="systemd passed none"):
        worker.seal("keys/a/0", DiskKey.make())
    worker.close()
    store = Store.create(tmp_path, host="simulated", size_bytes=SMALL_BYTES)
    store.prepare_key()
    made = key.read_bytes()
    with store.write() as txn:
        txn.put_raw("secret", "keys/a/0", store.seal("keys/a/0", DiskKey.make()))
    store.close()
    key.unlink()
    again = Store.create(tmp_path, host="simulated", size_bytes=SMALL_BYTES)
    again.prepare_key()
    with pytest.raises(StoreCorrupt, match="systemd passed none"):
        again.unsealed("keys/a/0")
    assert not key.exists()
    key.write_bytes(made)
    assert again.unsealed("keys/a/0")
    again.close()
