"""The store: records in LMDB, in short transactions, shared by the daemon and its workers.

Every record lies under `<class>/<key>` as JSON, so `mdb_dump` shows it. `claim/<thing>` names the
operation that owns a thing, `secret/<name>` holds sealed secrets, `meta/...` what the store is.
No transaction spans an await or a command: a stopped holder of the write lock stops all others.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import lmdb

from zfsilod.model.errors import Busy, FailedPrecondition, ResourceExhausted, StoreCorrupt
from zfsilod.model.observed import apply_observed
from zfsilod.model.record import Record, Stored, from_plain, to_plain
from zfsilod.model.records import Operation, Volume
from zfsilod.storage.secrets import load_key, seal, unseal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zfsilod.model.chap import Chap
    from zfsilod.model.records import Change, OperationState

SCHEMA = 3  # migrations.py has the way from each number to the next
HEAD_ROOM = 0.9  # beyond this share of the map nothing new begins, so that what runs can end
RECORD = b'{"is":'  # how the value of a record begins
MAX_KEY_BYTES = 400  # LMDB allows 511; longer names are hashed
DEFAULT_SIZE_BYTES = 1 << 30

DAMAGED = (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError)

R = TypeVar("R", bound=Stored)


class Transaction:
    """What can be read, and in a write transaction changed, at one moment."""

    def __init__(self, handle: lmdb.Transaction) -> None:
        self._handle = handle

    def end(self) -> None:
        """End what was only read.

        LMDB has places for 256 readers, and py-lmdb keeps one for as long as somebody has the
        handle, as a coroutine that waits has its variables.
        """
        self._handle.abort()
        del self._handle

    def get(self, kind: type[R], key: str) -> R | None:
        """Return the record of that key, or None."""
        raw = self.get_raw(kind.bucket(), key)
        return None if raw is None else _decode(raw)

    def scan(self, kind: type[R], after: str = "") -> Iterator[R]:
        """Yield the records of a class in the order of their keys, from behind `after`."""
        prefix = f"{kind.bucket()}/".encode()
        for _key_bytes, raw in self.items(prefix, after):
            yield _decode(raw)

    def scan_plain(self, kind: type[R]) -> Iterator[dict[str, Any]]:
        """Yield the records of a class as they are stored: for counting very many of them."""
        return self.scan_bucket(kind.bucket())

    def scan_bucket(self, bucket: str) -> Iterator[dict[str, Any]]:
        """Yield the records of a bucket as they are stored, in whichever schema."""
        for _key_bytes, raw in self.items(f"{bucket}/".encode()):
            yield json.loads(raw)

    def rewrite(self, change: Callable[[Any], Any]) -> None:
        """Write every record as `change` returns it, in the form that JSON has: a migration."""
        for key_bytes, raw in list(self.items()):
            if raw.startswith(RECORD) and not key_bytes.startswith(b"secret/"):
                self._handle.put(key_bytes, _as_json(change(json.loads(raw))))

    def live_units(self) -> set[str]:
        """Return the units of the operations that have not ended, in whichever schema."""
        stored = (self.get_raw("operation", each.decode()) for _key, each in self.items(b"live/"))
        plain = [json.loads(raw) for raw in stored if raw is not None]
        return {operation["batch"] or operation["id"] for operation in plain}

    def scan_below(self, kind: type[R], key: str) -> Iterator[R]:
        """Yield the records whose key begins with `key/`: the publications of one volume."""
        for _key_bytes, raw in self.items(f"{kind.bucket()}/{key}/".encode()):
            yield _decode(raw)

    def scan_ending(self, kind: type[R], key: str, after: str = "") -> Iterator[R]:
        """Yield the records whose key ends with `/key`: what is published to one host.

        All keys are looked at; only what is yielded is decoded, which is what takes the time.
        """
        end = f"/{key}".encode()
        for key_bytes, raw in self.items(f"{kind.bucket()}/".encode(), after):
            if key_bytes.endswith(end):
                yield _decode(raw)

    def put(self, record: R) -> R:
        """Write a record with the next revision, and return it as written."""
        if isinstance(record, Operation):
            self._check_unchanged(record)
            self.drop("changed", _ordered(record.revision))
        elif isinstance(record, Volume):
            self._promise(_thin_bytes(record) - _thin_bytes(self.get(Volume, record.key)))
        record = record.but(revision=self.next_revision())
        self.put_raw(record.bucket(), record.key, _encode(record))
        if isinstance(record, Operation):
            self.put_raw("changed", _ordered(record.revision), record.key.encode())
        return record

    def _check_unchanged(self, operation: Operation) -> None:
        """Refuse to write an operation over what somebody else wrote since it was read."""
        stored = self.get(Operation, operation.id)
        if (stored.revision if stored else 0) != operation.revision:
            raise Busy(f"operation {operation.id} was changed meanwhile", reason="CHANGED")

    def drop(self, bucket: str, key: str) -> None:
        """Remove what is under a key; nothing there is fine."""
        if bucket == Operation.bucket():
            found = self.get(Operation, key)
            self.drop("changed", _ordered(found.revision if found else 0))
        elif bucket == Volume.bucket():
            self._promise(-_thin_bytes(self.get(Volume, key)))
        self.drop_raw(bucket, key)

    def drop_raw(self, bucket: str, key: str) -> None:
        """Remove the bytes under a key, if there are any."""
        self._handle.delete(_key(bucket, key))

    def get_raw(self, bucket: str, key: str) -> bytes | None:
        """Return the bytes under a key, or None."""
        raw = self._handle.get(_key(bucket, key))
        return None if raw is None else bytes(raw)

    def put_raw(self, bucket: str, key: str, value: bytes) -> None:
        """Write bytes under a key. Raises ResourceExhausted when the store is full."""
        try:
            self._handle.put(_key(bucket, key), value)
        except lmdb.MapFullError as error:
            raise full_store() from error

    def next_revision(self) -> int:
        """Count the store's revision up by one."""
        revision = self.revision() + 1
        self.put_raw("meta", "revision", str(revision).encode())
        return revision

    def schema(self) -> int:
        """Return the number of the form that the records have."""
        return int(self.get_raw("meta", "schema") or b"0")

    def revision(self) -> int:
        """Return the revision of the newest change."""
        return int(self.get_raw("meta", "revision") or b"0")

    def promised(self) -> int:
        """Return how many bytes all thin volumes together may come to take."""
        return int(self.get_raw("meta", "promised") or b"0")

    def _promise(self, more: int) -> None:
        if more:
            self.put_raw("meta", "promised", str(self.promised() + more).encode())

    def claimant(self, thing: str) -> str | None:
        """Return the operation that owns a thing, or None."""
        raw = self.get_raw("claim", thing)
        return None if raw is None else raw.decode()

    def live(self) -> Iterator[Operation]:
        """Yield the operations that have not ended."""
        for _key_bytes, operation_id in self.items(b"live/"):
            yield self._operation(operation_id)

    def of_unit(self, unit: str) -> list[Operation]:
        """Return the operations that a unit runs: its own one, or those left of a batch."""
        own = self.get(Operation, unit)
        return [own] if own else [each for each in self.live() if each.batch == unit]

    def changed_after(self, revision: int) -> Iterator[Operation]:
        """Yield the operations that changed since a revision, oldest change first."""
        for _key_bytes, operation_id in self.items(b"changed/", _ordered(revision)):
            yield self._operation(operation_id)

    def oldest(self, count: int) -> Iterator[Operation]:
        """Yield the operations whose last change is the longest ago."""
        return islice(self.changed_after(0), count)

    def _operation(self, operation_id: bytes) -> Operation:
        found = self.get(Operation, operation_id.decode())
        if found is None:
            raise StoreCorrupt(f"the store has no operation {operation_id.decode()}")
        return found

    def add_operation(self, operation: Operation) -> Operation:
        """Store a new operation and claim its things, which must be free (see `claimant`)."""
        for thing in operation.claims:
            owner = self.claimant(thing)
            assert owner is None or owner == operation.id, f"{thing} belongs to {owner}"
            self.put_raw("claim", thing, operation.id.encode())
        self.put_raw("live", operation.id, operation.id.encode())
        return self.put(operation)

    def finish(self, operation: Operation, state: OperationState) -> Operation:
        """End an operation: its records, its claims and its own end, in one transaction."""
        changes = operation.commit if state == "DONE" else operation.revert
        for change in changes:
            self._apply(change, dict(operation.facts))
        for thing in operation.claims:
            if self.claimant(thing) == operation.id:
                self.drop("claim", thing)
        self.drop("live", operation.id)
        failure = None if state == "DONE" else operation.failure
        return self.put(operation.but(state=state, failure=failure, ended_at=int(time.time())))

    def _apply(self, change: Change, facts: dict[str, str]) -> None:
        if change.record is None:
            self.drop(change.bucket, change.key)
        else:
            self.put(apply_observed(change.record, facts))

    def items(self, prefix: bytes = b"", after: str = "") -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys with a prefix and their values as LMDB has them, from behind `after`."""
        with self._handle.cursor() as cursor:
            start = prefix + after.encode()
            found = cursor.set_range(start)
            if found and after and cursor.key() == start:
                found = cursor.next()
            while found and bytes(cursor.key()).startswith(prefix):
                yield bytes(cursor.key()), bytes(cursor.value())
                found = cursor.next()


class Store:
    """One LMDB environment; open it once in a process, and never across a fork."""

    def __init__(self, directory: Path, *, size_bytes: int = 0, durable: bool = True) -> None:
        """Open the store. A size of 0 takes the size that the store already has."""
        self.directory = directory
        path = directory / "store"
        if size_bytes:
            path.mkdir(mode=0o700, exist_ok=True)
        data = path / "data.mdb"
        if data.exists() and data.stat().st_size < 2 * os.sysconf("SC_PAGESIZE"):
            raise damaged(path, "it is cut short")  # LMDB would take an empty file for a new store
        try:
            self._environment = lmdb.open(
                os.fspath(path),
                map_size=size_bytes,
                max_dbs=0,
                mode=0o600,
                sync=durable,
                create=size_bytes > 0,
                max_readers=256,
            )
        except DAMAGED as error:
            raise damaged(path, str(error)) from error
        except lmdb.Error as error:
            raise StoreCorrupt(f"the store {path} cannot be opened: {error}") from error
        info, stat = self._environment.info(), self._environment.stat()
        if data.stat().st_size < (info["last_pgno"] + 1) * stat["psize"]:  # a read would kill us
            self._environment.close()
            raise damaged(path, "it is cut short")
        self._environment.reader_check()
        self._key: bytes | None = None

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        host: str,
        size_bytes: int = DEFAULT_SIZE_BYTES,
        durable: bool = True,
    ) -> Store:
        """Open the store of a directory, and make it on first use for this kind of host."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = cls(directory, size_bytes=size_bytes, durable=durable)
        with store.change() as txn:
            if txn.get_raw("meta", "schema") is None:
                txn.put_raw("meta", "schema", str(SCHEMA).encode())
                txn.put_raw("meta", "host", host.encode())
        store.check(host)
        return store

    def migrate(self) -> None:
        """Bring an older store to this schema, in one transaction; no worker may run."""
        from zfsilod.storage.migrations import MIGRATIONS  # the worker never migrates

        with self.change() as txn:
            for number in range(txn.schema(), SCHEMA):
                MIGRATIONS[number](txn)
                txn.put_raw("meta", "schema", str(number + 1).encode())

    def check(self, host: str) -> None:
        """Refuse a store of another schema, or of another kind of host."""
        with self.read() as txn:
            schema, kept = txn.get_raw("meta", "schema"), txn.get_raw("meta", "host")
        if schema is None or kept is None:
            raise StoreCorrupt(f"the store {self.directory} says nothing of what it is")
        if int(schema) > SCHEMA:
            raise other_schema(int(schema))
        if kept.decode() != host:
            raise FailedPrecondition(
                f"the store {self.directory} is of a {kept.decode()} host, not of a {host} one: "
                "use another state directory",
                reason="OTHER_HOST",
            )

    @property
    def host(self) -> str:
        """Return the kind of host that the store is of: real or simulated."""
        with self.read() as txn:
            return (txn.get_raw("meta", "host") or b"").decode()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Open a read transaction: a consistent view that blocks nobody."""
        txn = Transaction(self._environment.begin())
        try:
            yield txn
        finally:
            txn.end()

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open the one write transaction; leaving it by an exception takes it all back.

        Raises FailedPrecondition when another version of zfsilo has changed the schema meanwhile.
        """
        with self.change() as txn:
            if txn.schema() != SCHEMA:
                raise other_schema(txn.schema())
            yield txn

    @contextmanager
    def change(self) -> Iterator[Transaction]:
        """Open a write transaction whatever the schema is."""
        try:
            with self._environment.begin(write=True) as handle:
                yield Transaction(handle)
        except lmdb.MapFullError as error:
            raise full_store() from error

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()

    def used(self) -> float:
        """Return the share of the map that is in use, 0 to 1."""
        stat = self._environment.stat()
        pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return float(pages * stat["psize"] / self._environment.info()["map_size"])

    def check_head_room(self) -> None:
        """Refuse to begin anything new in a nearly full store. Raises ResourceExhausted."""
        if self.used() > HEAD_ROOM:
            raise full_store()

    def seal(self, name: str, chap: Chap) -> bytes:
        """Encrypt secrets for `put_raw("secret", name, ...)`."""
        return seal(self._sealing_key(), name, chap)

    def chap(self, name: str) -> Chap:
        """Return the secrets of that name."""
        with self.read() as txn:
            sealed = txn.get_raw("secret", name)
        if sealed is None:
            raise StoreCorrupt(f"the store has no secrets named {name}")
        return unseal(self._sealing_key(), name, sealed)

    def _sealing_key(self) -> bytes:
        if self._key is None:
            self._key = load_key(self.directory / "key")
        return self._key


def damaged(path: Path, why: str) -> StoreCorrupt:
    """Return the error for a store that cannot be read."""
    return StoreCorrupt(
        f"the store {path} is damaged ({why}): bring it back from a backup; without one move it "
        "away, start zfsilod, and rebuild it from the pool with zfsiloctl adopt --all",
        path=os.fspath(path),
    )


def other_schema(found: int) -> FailedPrecondition:
    """Return the error for a store that another version of zfsilo has written."""
    return FailedPrecondition(
        f"the store has schema {found}, this zfsilo knows {SCHEMA}: install a version that is at "
        "least as new as the one that wrote it",
        reason="SCHEMA",
        found=str(found),
        known=str(SCHEMA),
    )


def _thin_bytes(volume: Volume | None) -> int:
    return volume.capacity_bytes if volume is not None and volume.thin else 0


def full_store() -> ResourceExhausted:
    """Return the error for a store without room."""
    return ResourceExhausted(
        "the store is full: raise store.size_bytes in zfsilod.toml and restart zfsilod",
        reason="STORE_FULL",
    )


def _ordered(revision: int) -> str:
    """Return a revision as text that sorts like the number."""
    return f"{revision:020}"


def _key(bucket: str, key: str) -> bytes:
    raw = key.encode()
    if len(raw) > MAX_KEY_BYTES:
        import hashlib  # 4 ms, which only a very long name is worth

        raw = hashlib.sha256(raw).hexdigest().encode()
    return bucket.encode() + b"/" + raw


def _encode(record: Record) -> bytes:
    return _as_json(to_plain(record))


def _as_json(plain: object) -> bytes:
    return json.dumps(plain, separators=(",", ":")).encode()


@lru_cache(maxsize=1024)  # records are frozen, and readers ask for the same ones again
def _decode(raw: bytes) -> Any:
    try:
        return from_plain(json.loads(raw))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(f"a record in the store does not read back: {error}") from error
