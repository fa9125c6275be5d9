"""The store: an LMDB environment with the records, shared by the daemon and its workers.

No transaction spans an await or a command: a stopped holder of the write lock stops all others.
"""

from __future__ import annotations

import os

import lmdb

from zfsilod.model.chap import Chap
from zfsilod.model.errors import (
    NO_SPACE,
    FailedPrecondition,
    StoreCorrupt,
    ZfsiloError,
    bad_disk,
    full_disk,
)
from zfsilod.model.lean import TYPE_CHECKING, contextmanager
from zfsilod.model.records import VolumeKey, disk_key_name
from zfsilod.storage import files
from zfsilod.storage.paths import exists
from zfsilod.storage.secrets import credential, load_key, make_key, seal, unseal
from zfsilod.storage.transaction import Transaction, full_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.model.disk_key import DiskKey
    from zfsilod.storage.paths import AnyPath

SCHEMA = 3  # migrations.py has the migration from each number to the next
HEAD_ROOM = 0.9  # the share of the store after which nothing is added, so that all can be removed
REMOTE_HEAD_ROOM = 0.8  # the same for callers of other hosts
CROWDED = 0.5  # the share after which each new operation replaces the oldest that have ended
# The map is larger than the store, since LMDB needs runs of free pages for long records, and finds
# none in a store whose free pages are scattered. The rest is for descents and ends of operations.
MAP_FACTOR = 2
DEFAULT_SIZE_BYTES = 1 << 30

DAMAGED = (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError)


class Store:
    """One LMDB environment. A process opens it once, and not before a fork."""

    def __init__(self, directory: AnyPath, *, size_bytes: int = 0, durable: bool = True) -> None:
        """Open the store. `size_bytes`: of the map; 0: the size of the existing store."""
        self.directory = os.fspath(directory)
        path = f"{self.directory}/store"
        if size_bytes:
            files.make_folder(path)
        data = f"{path}/data.mdb"
        if exists(data) and os.stat(data).st_size < 2 * os.sysconf("SC_PAGESIZE"):
            raise damaged(path, "the file is truncated")  # LMDB takes an empty file for a new store
        try:
            self._environment = lmdb.open(
                path,
                map_size=size_bytes * MAP_FACTOR,
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
        if (
            os.stat(data).st_size < (info["last_pgno"] + 1) * stat["psize"]
        ):  # a read would raise SIGBUS
            self._environment.close()
            raise damaged(path, "the file is truncated")
        self._environment.reader_check()
        self._key: bytes | None = None
        self._may_make_key = size_bytes > 0  # the daemon: a worker would hide that one is missing

    @classmethod
    def create(
        cls,
        directory: AnyPath,
        *,
        host: str,
        size_bytes: int = DEFAULT_SIZE_BYTES,
        durable: bool = True,
    ) -> Store:
        """Open the store of a directory; create it on first use for a kind of host."""
        files.make_folder(directory)
        store = cls(directory, size_bytes=size_bytes, durable=durable)
        with store.change() as txn:
            if txn.get_raw("meta", "schema") is None:
                txn.put_raw("meta", "schema", str(SCHEMA).encode())
                txn.put_raw("meta", "host", host.encode())
        store.check(host)
        return store

    def migrate(self) -> None:
        """Migrate an older store to this schema, in one transaction; no worker may run."""
        from zfsilod.storage.migrations import MIGRATIONS  # not in the worker, which never migrates

        with self.change() as txn:
            for number in range(txn.schema(), SCHEMA):
                MIGRATIONS[number](txn)
                txn.put_raw("meta", "schema", str(number + 1).encode())

    def check(self, host: str) -> None:
        """Raise FailedPrecondition for a newer schema or another kind of host."""
        with self.read() as txn:
            schema, kept = txn.get_raw("meta", "schema"), txn.get_raw("meta", "host")
        if schema is None or kept is None:
            raise StoreCorrupt(
                f"the store {self.directory} has no schema number; restore it from a backup"
            )
        if int(schema) > SCHEMA:
            raise other_schema(int(schema))
        if kept.decode() != host:
            raise FailedPrecondition(
                f"the store {self.directory} belongs to a {kept.decode()} host, not to a {host} "
                "one: use another state directory",
                reason="OTHER_HOST",
            )

    @property
    def host(self) -> str:
        """The kind of host that the store belongs to: real or simulated."""
        with self.read() as txn:
            return (txn.get_raw("meta", "host") or b"").decode()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Open a read transaction: a consistent view that blocks no writer."""
        txn = Transaction(self._environment.begin())
        try:
            yield txn
        finally:
            txn.end()

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open the only write transaction; an exception that leaves it aborts it.

        Raises FailedPrecondition when another version of zfsilo has changed the schema meanwhile.
        """
        with self.change() as txn:
            if txn.schema() != SCHEMA:
                raise other_schema(txn.schema())
            yield txn

    @contextmanager
    def change(self) -> Iterator[Transaction]:
        """Open the write transaction of a store of any schema."""
        try:
            with self._environment.begin(write=True) as handle:
                yield Transaction(handle, crowded=self.used() > CROWDED)
        except lmdb.Error as error:
            raise self._failure(error) from error

    def _failure(self, error: lmdb.Error) -> ZfsiloError:
        """Return the error of a transaction that LMDB could not carry out."""
        if isinstance(error, lmdb.MapFullError):
            return full_store()
        why = str(error).rpartition(": ")[2]
        path = self.directory
        if isinstance(error, lmdb.DiskError) or any(os.strerror(n) in why for n in NO_SPACE):
            return full_disk(path, why)
        return bad_disk(path, why)

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()

    def used(self) -> float:
        """Return the used share of the store, 0 to 1; more in a store that was made smaller."""
        stat = self._environment.stat()
        pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return float(MAP_FACTOR * pages * stat["psize"] / self._environment.info()["map_size"])

    def check_head_room(self, *, local: bool = True) -> None:
        """Raise ResourceExhausted in a nearly full store: only descents start there."""
        if self.used() > (HEAD_ROOM if local else REMOTE_HEAD_ROOM):
            raise full_store()

    def seal(self, name: str, secret: Chap | DiskKey) -> bytes:
        """Encrypt secrets for `put_raw("secret", name, ...)`."""
        return seal(self._sealing_key(), name, secret)

    def unsealed(self, name: str) -> dict[str, str]:
        """Return the values of a secret; none when there is none of that name. Never log them."""
        with self.read() as txn:
            sealed = txn.get_raw("secret", name)
        return {} if sealed is None else unseal(self._sealing_key(), name, sealed)

    def chap(self, name: str) -> Chap:
        """Return the secrets of that name."""
        if values := self.unsealed(name):
            return Chap(**values)
        raise StoreCorrupt(f"the store has no secrets named {name}; restore it from a backup")

    # The keys of encrypted volumes: host/server_protocols.py, KeyStore

    def disk_key(self, uid: str, rotation: int) -> DiskKey:
        """Return the key of a volume by its rotation; CURRENT: the one of its record.

        Raises FailedPrecondition (KEY_LOST) when the store does not have it.
        """
        from zfsilod.model.disk_key import DiskKey  # few operations need one

        name, sealed = self._sealed_key(uid, rotation)
        return DiskKey(**unseal(self._sealing_key(), name, sealed))

    def disk_keys(self, uid: str, sealed: str) -> list[DiskKey]:
        """Return the recorded key of a volume, and those that its zvol carries, sealed.

        Raises FailedPrecondition (KEY_LOST) when there is none.
        """
        from zfsilod.model.disk_key import CURRENT, DiskKey

        self._sealing_key()  # its own failure says nothing about these keys
        try:
            keys = [self.disk_key(uid, CURRENT)]
        except (FailedPrecondition, StoreCorrupt):  # none, or of another key of the store
            keys = []
        for carried in sealed.split():
            from base64 import b64decode

            rotation, _colon, text = carried.partition(":")
            try:
                name = disk_key_name(uid, int(rotation))
                keys.append(DiskKey(**unseal(self._sealing_key(), name, b64decode(text))))
            except (ValueError, StoreCorrupt):  # of the store of another server
                continue
        if not keys:
            raise lost_key(uid)
        return list(dict.fromkeys(keys))

    def sealed_key(self, uid: str, rotation: int) -> str:
        """Return a key as its zvol carries it: ROTATION:BASE64. Raises FailedPrecondition."""
        from base64 import b64encode

        _name, sealed = self._sealed_key(uid, rotation)
        return f"{rotation}:{b64encode(sealed).decode()}"

    def _sealed_key(self, uid: str, rotation: int) -> tuple[str, bytes]:
        """Return the name and the sealed bytes of a key. Raises FailedPrecondition (KEY_LOST)."""
        with self.read() as txn:
            record = txn.get(VolumeKey, uid)
            recorded = record.rotation if record is not None else -1
            name = disk_key_name(uid, recorded if rotation < 0 else rotation)
            sealed = txn.get_raw("secret", name) if max(recorded, rotation) >= 0 else None
        if sealed is None:
            raise lost_key(uid)
        return name, sealed

    def prepare_key(self) -> None:
        """Make the key of a store without secrets, so that `zfsiloctl seal-key` finds one."""
        if not self._has_secrets():
            self._sealing_key()

    def _sealing_key(self) -> bytes:
        if self._key is None:
            file = f"{self.directory}/key"
            missing = self._may_make_key and not credential() and not exists(file)
            if missing and not self._has_secrets():
                make_key(file)
            self._key = load_key(file)
        return self._key

    def _has_secrets(self) -> bool:
        with self.read() as txn:
            return next(txn.items(b"secret/"), None) is not None


def lost_key(uid: str) -> FailedPrecondition:
    """Return the error for a key that neither the store nor the zvol has."""
    return FailedPrecondition(
        f"zfsilo has no key of the volume with the uid {uid}; load it with its recovery key "
        "(zfs load-key), then run zfsiloctl volume rotate-key",
        reason="KEY_LOST",
        uid=uid,
    )


def damaged(path: str, why: str) -> StoreCorrupt:
    """Return the error for a store that cannot be read."""
    return StoreCorrupt(
        f"the store {path} is damaged ({why}): restore it from a backup; without one move it "
        "away, start zfsilod, and rebuild it from the pool with zfsiloctl adopt --all",
        path=path,
    )


def other_schema(schema: int) -> FailedPrecondition:
    """Return the error for a store with the schema of another version of zfsilo."""
    return FailedPrecondition(
        f"the store has schema {schema}, this zfsilo knows {SCHEMA}: install a version that is at "
        "least as new as the one that wrote it",
        reason="SCHEMA",
        found=str(schema),
        known=str(SCHEMA),
    )
