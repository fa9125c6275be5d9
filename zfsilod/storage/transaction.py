"""A transaction of the store: reads and writes of records, claims and operations.

Each record is stored under `<class>/<key>` as JSON, which `mdb_dump` shows. `claim/<resource>` has
the id of the operation that holds a claim, `live/<id>` exists for an operation that has not ended,
`cancelled/<id>` for one of these that a caller cancelled,
`changed/<revision>` has the ids of operations in the order of their changes, `secret/<name>` has
sealed secrets, and `meta/...` describes the store.
"""

from __future__ import annotations

import time
from itertools import islice

import lmdb

from zfsilod.model.errors import Busy, ResourceExhausted, StoreCorrupt
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.observed import apply_observed
from zfsilod.model.record import Stored, from_plain, to_plain
from zfsilod.model.records import Attachment, Condition, Operation, Volume
from zfsilod.storage import record_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    from zfsilod.model.words import OperationState

    R = TypeVar("R", bound=Stored)

RECORD = b'{"is":'  # the first bytes of every record
KEPT_OPERATIONS = 10_000  # beyond these each new one replaces two that have ended
KEPT_CROWDED = 64  # in a crowded store
OLDEST = 100  # that are looked at for ended ones
MAX_DECODED = 1024  # records are frozen, and readers read the same ones repeatedly
MAX_KEY_BYTES = 400  # LMDB allows 511; longer names are hashed


_decoded: dict[bytes, Any] = {}


class Transaction:
    """A read transaction or the write transaction: a consistent view of the store."""

    def __init__(self, handle: lmdb.Transaction, *, crowded: bool = False) -> None:
        """`crowded`: the store is filled so far that a new operation replaces old ones."""
        self._handle = handle
        self._crowded = crowded

    def end(self) -> None:
        """End a read transaction, and free its reader slot.

        LMDB has 256 slots, and py-lmdb keeps one until the handle is deallocated; a suspended
        coroutine keeps its variables alive.
        """
        self._handle.abort()
        del self._handle

    def get(self, kind: type[R], key: str) -> R | None:
        """Return the record of that key, or None."""
        raw = self.get_raw(kind.bucket(), key)
        return None if raw is None else _decode(raw)

    def scan(self, kind: type[R], after: str = "") -> Iterator[R]:
        """Yield the records of a class in the order of their keys, only those after `after`."""
        prefix = f"{kind.bucket()}/".encode()
        for _key_bytes, raw in self.items(prefix, after):
            yield _decode(raw)

    def scan_plain(self, kind: type[R]) -> Iterator[dict[str, Any]]:
        """Yield the records of a class as JSON: faster than `scan`, for counts of many records."""
        return self.scan_bucket(kind.bucket())

    def scan_bucket(self, bucket: str) -> Iterator[dict[str, Any]]:
        """Yield the records of a bucket as JSON, of any schema."""
        for _key_bytes, raw in self.items(f"{bucket}/".encode()):
            yield record_json.loads(raw)

    def rewrite(self, change: Callable[[Any], Any]) -> None:
        """Replace the JSON of every record by what `change` returns: for migrations."""
        for key_bytes, raw in list(self.items()):
            if raw.startswith(RECORD) and not key_bytes.startswith(b"secret/"):
                self._handle.put(key_bytes, record_json.dumps(change(record_json.loads(raw))))

    def live_units(self) -> set[str]:
        """Return the units of the operations that have not ended, of any schema."""
        ids = [operation_id.decode() for _key_bytes, operation_id in self.items(b"live/")]
        stored = (self.get_raw("operation", operation_id) for operation_id in ids)
        operations = [record_json.loads(raw) for raw in stored if raw is not None]
        return {operation["batch"] or operation["id"] for operation in operations}

    def scan_below(self, kind: type[R], key: str) -> Iterator[R]:
        """Yield the records whose key starts with `key/`, like the publications of one volume."""
        for _key_bytes, raw in self.items(f"{kind.bucket()}/{key}/".encode()):
            yield _decode(raw)

    def scan_ending(self, kind: type[R], key: str, after: str = "") -> Iterator[R]:
        """Yield the records whose key ends with `/key`, like the publications to one host.

        All keys are compared; only the yielded records are decoded, which is the slow part.
        """
        end = f"/{key}".encode()
        for key_bytes, raw in self.items(f"{kind.bucket()}/".encode(), after):
            if key_bytes.endswith(end):
                yield _decode(raw)

    def put(self, record: R) -> R:
        """Write a record with the next revision, and return it as written.

        Raises Busy for an operation that was written by another process since it was read.
        """
        if isinstance(record, Operation):
            stored = self.get(Operation, record.id)
            if (stored.revision if stored else 0) != record.revision:
                raise Busy(
                    f"operation {record.id} was changed by another process; read it again",
                    reason="CHANGED",
                )
            self.drop("changed", _ordered(record.revision))
            if stored is None:
                self._make_space()
        elif isinstance(record, Volume):
            self._promise(_thin_bytes(record) - _thin_bytes(self.get(Volume, record.key)))
        record = record.but(revision=self.next_revision())
        self.put_raw(record.bucket(), record.key, record_json.dumps(to_plain(record)))
        if isinstance(record, Operation):
            self.put_raw("changed", _ordered(record.revision), record.key.encode())
        return record

    def drop(self, bucket: str, key: str) -> None:
        """Remove the record under a key, if there is one."""
        if bucket == Operation.bucket():
            operation = self.get(Operation, key)
            self.drop("changed", _ordered(operation.revision if operation else 0))
            if operation:
                self.put_raw("meta", "operations", str(max(0, self._operations() - 1)).encode())
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
        """Increase the revision of the store by one, and return it."""
        revision = self.revision() + 1
        self.put_raw("meta", "revision", str(revision).encode())
        return revision

    def schema(self) -> int:
        """Return the number of the schema of the records."""
        return int(self.get_raw("meta", "schema") or b"0")

    def revision(self) -> int:
        """Return the revision of the last change."""
        return int(self.get_raw("meta", "revision") or b"0")

    def promised(self) -> int:
        """Return the sum of the sizes of all thin volumes, in bytes."""
        return int(self.get_raw("meta", "promised") or b"0")

    def pending_growth(self, revision: int) -> tuple[int, int]:
        """Return the bytes that operations still reserve, and still promise to thin volumes.

        `revision`: of the store when the space of the pool was measured. An operation that has
        ended since then may be missing in the measurement.
        """
        live = list(self.live())
        reserving = {
            operation.id: operation.reserves
            for operation in live
            if operation.state != "NEEDS_REPAIR" or operation.revision > revision
        }
        for operation in self.changed_after(revision):
            if operation.state == "DONE":
                reserving[operation.id] = operation.reserves
        return sum(reserving.values()), sum(operation.promises for operation in live)

    def _make_space(self) -> None:
        """Drop two of the oldest ended operations for a new one, in a store with too many.

        So the history never fills the store, and every descent finds space for its own operation.
        """
        count = self._operations()
        keep = KEPT_CROWDED if self._crowded else KEPT_OPERATIONS
        if count > keep:
            ended = [one.id for one in self.oldest(OLDEST) if one.ended][:2]
            for operation_id in ended:
                self.drop(Operation.bucket(), operation_id)
        self.put_raw("meta", "operations", str(self._operations() + 1).encode())

    def _operations(self) -> int:
        """Return the number of operations; an older store has no count."""
        raw = self.get_raw("meta", "operations")
        if raw is None:
            return sum(1 for _item in self.items(f"{Operation.bucket()}/".encode()))
        return int(raw)

    def _promise(self, more: int) -> None:
        if more:
            self.put_raw("meta", "promised", str(self.promised() + more).encode())

    def claimant(self, resource: str) -> str | None:
        """Return the id of the operation that holds the claim on a resource, or None."""
        raw = self.get_raw("claim", resource)
        return None if raw is None else raw.decode()

    def note_cancelled(self, operation_id: str) -> None:
        """Note that a caller cancelled a live operation, which its rollback must not finish."""
        if self.get_raw("live", operation_id):
            self.put_raw("cancelled", operation_id, b"1")

    def is_cancelled(self, operation_id: str) -> bool:
        """Tell whether a caller cancelled the operation."""
        return self.get_raw("cancelled", operation_id) is not None

    def live(self) -> Iterator[Operation]:
        """Yield the operations that have not ended."""
        for _key_bytes, operation_id in self.items(b"live/"):
            yield self._operation(operation_id)

    def of_unit(self, unit: str) -> list[Operation]:
        """Return the operations that a unit runs: its own one, or the live ones of a batch."""
        own = self.get(Operation, unit)
        return [own] if own else [operation for operation in self.live() if operation.batch == unit]

    def changed_after(self, revision: int) -> Iterator[Operation]:
        """Yield the operations that changed after a revision, in the order of their changes."""
        for _key_bytes, operation_id in self.items(b"changed/", _ordered(revision)):
            yield self._operation(operation_id)

    def oldest(self, count: int) -> Iterator[Operation]:
        """Yield the operations that have been unchanged for the longest time."""
        return islice(self.changed_after(0), count)

    def _operation(self, operation_id: bytes) -> Operation:
        operation = self.get(Operation, operation_id.decode())
        if operation is None:
            raise StoreCorrupt(
                f"the store has no record of operation {operation_id.decode()}; restore it from a "
                "backup"
            )
        return operation

    def add_operation(self, operation: Operation) -> Operation:
        """Store a new operation and its claims, which must be free (see `claimant`)."""
        for resource in operation.claims:
            owner = self.claimant(resource)
            assert owner is None or owner == operation.id, f"{resource} is claimed by {owner}"
            self.put_raw("claim", resource, operation.id.encode())
        self.put_raw("live", operation.id, operation.id.encode())
        return self.put(operation)

    def finish(self, operation: Operation, state: OperationState) -> Operation:
        """End an operation: apply its record changes, release its claims, store its last state."""
        changes = operation.commit if state == "DONE" else operation.revert
        if state == "DONE":
            self.clear_condition(operation)
        for change in changes:
            if change.record is None:
                self.drop(change.bucket, change.key)
            else:
                self.put(apply_observed(change.record, dict(operation.facts)))
        for resource in operation.claims:
            if self.claimant(resource) == operation.id:
                self.drop("claim", resource)
        self.drop("live", operation.id)
        self.drop_raw("cancelled", operation.id)
        failure = None if state == "DONE" else operation.failure
        return self.put(operation.but(state=state, failure=failure, ended_at=int(time.time())))

    def clear_condition(self, operation: Operation) -> None:
        """Drop the condition of the volume on which an operation ended well."""
        kind, _slash, name = operation.subject.partition("/")
        if kind != "volumes":
            return
        volume, attachment = self.get(Volume, name), self.get(Attachment, name)
        uids = {volume.uid if volume else "", attachment.disk.serial if attachment else ""}
        for uid in filter(None, uids):
            if self.get_raw(Condition.bucket(), uid) is not None:
                self.drop(Condition.bucket(), uid)

    def items(self, prefix: bytes = b"", after: str = "") -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys with a prefix and their values as bytes, only those after `after`."""
        with self._handle.cursor() as cursor:
            start = prefix + after.encode()
            is_at_key = cursor.set_range(start)
            if is_at_key and after and cursor.key() == start:
                is_at_key = cursor.next()
            while is_at_key and bytes(cursor.key()).startswith(prefix):
                yield bytes(cursor.key()), bytes(cursor.value())
                is_at_key = cursor.next()


def full_store() -> ResourceExhausted:
    """Return the error for a store without free space."""
    return ResourceExhausted(
        "the store is full: raise store.size_bytes in zfsilod.toml and restart zfsilod",
        reason="STORE_FULL",
    )


def _thin_bytes(volume: Volume | None) -> int:
    return volume.capacity_bytes if volume is not None and volume.thin else 0


def _ordered(revision: int) -> str:
    """Return a revision as text that sorts like the number."""
    return f"{revision:020}"


def _key(bucket: str, key: str) -> bytes:
    raw = key.encode()
    if len(raw) > MAX_KEY_BYTES:
        import hashlib  # 4 ms, only for a very long name

        raw = hashlib.sha256(raw).hexdigest().encode()
    return bucket.encode() + b"/" + raw


def _decode(raw: bytes) -> Any:
    record = _decoded.get(raw)
    if record is not None:
        return record
    try:
        record = from_plain(record_json.loads(raw))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(
            f"a record in the store cannot be decoded: {error}; restore the store from a backup"
        ) from error
    if len(_decoded) >= MAX_DECODED:
        _decoded.clear()
    _decoded[raw] = record
    return record
