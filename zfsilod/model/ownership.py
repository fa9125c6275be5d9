"""The machine and the pool that a store belongs to, and why it may be kept from them.

The dataset root carries the user property `zfsilo:owner`, and the store a `PoolClaim`. Each start
of the daemon counts the generation up on both sides. So a store that was restored from a backup is
older than its pool, and a pool that was rolled back, or used by another store, is not the claimed
one.
"""

from __future__ import annotations

from zfsilod.model.errors import FailedPrecondition, Unavailable
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import DIGITS
from zfsilod.model.record import Record, Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from zfsilod.model.errors import ZfsiloError

HEX = DIGITS.union("abcdef")
STORE_ID_DIGITS, MAX_GENERATION_DIGITS, MAX_HOST = 32, 18, 128
HOST = DIGITS.union("abcdefghijklmnopqrstuvwxyz._-")
HOLDS = ("OTHER_MACHINE", "POOL_NEWER", "POOL_OLDER", "POOL_OF_ANOTHER_STORE", "POOL_UNKNOWN")
"""The reasons of holds."""
ADOPT = "zfsiloctl adopt --all"
TAKE_OVER = f"{ADOPT} --take-over"


class StoreIdentity(Stored, tag="StoreIdentity"):
    """The store itself: its id, made once, and the machine that it belongs to."""

    id: str  # IDENTITY: there is one
    store_id: str
    machine: str  # HostAdapters.machine_id
    root: str = ""  # the dataset root of the daemon's last start


IDENTITY = "store"


class PoolClaim(Stored, tag="PoolClaim"):
    """A dataset root that this store has claimed."""

    id: str  # the dataset root
    generation: int


class PoolOwner(Record):
    """The value of `zfsilo:owner`."""

    store_id: str
    generation: int
    host: str

    def __str__(self) -> str:
        return f"{self.store_id}:{self.generation}:{self.host}"


class Hold(Record):
    """Why nothing is changed on a machine or in a pool, and the command that ends it."""

    reason: str
    sentence: str
    command: str
    root: str = ""  # the dataset root; "": the whole host

    def error(self) -> ZfsiloError:
        """Return the error for a request."""
        kind = Unavailable if self.reason == "POOL_UNKNOWN" else FailedPrecondition
        facts = {"root": self.root} if self.root else {}
        return kind(f"{self.sentence}: {self.command}", reason=self.reason, **facts)


class Ownership:
    """Why this daemon may change nothing on its machine, or nothing in its pool.

    The daemon compares at its start, before it recovers anything, and again in each minute: a pool
    can be exported, used elsewhere, and imported again while the daemon runs.
    """

    def __init__(self, lifted: Callable[[], None] = lambda: None) -> None:
        """`lifted`: called when the last hold ended: what was held back is due."""
        self.machine: Hold | None = None
        self.pool: Hold | None = None
        self.holds: tuple[Hold, ...] = ()  # both, that of the machine first
        self.compared_at = 0.0  # time.monotonic()
        self.claimed: set[str] = set()  # dataset roots, since the start of the daemon
        self.lifted = lifted

    def hold(self, machine: Hold | None, pool: Hold | None) -> None:
        """Set the holds, as they were found now."""
        self.machine, self.pool = machine, pool
        self.holds = tuple(hold for hold in (machine, pool) if hold is not None)

    @property
    def is_pool_unknown(self) -> bool:
        """Whether the owner of the pool could not be read: it is read again before a request."""
        return self.pool is not None and self.pool.reason == "POOL_UNKNOWN"

    def check_machine(self) -> None:
        """Raise FailedPrecondition (OTHER_MACHINE) on another machine."""
        if self.machine is not None:
            raise self.machine.error()

    def check_pool(self) -> None:
        """Raise FailedPrecondition or Unavailable unless the pool may be changed."""
        for hold in self.holds:
            raise hold.error()


def parse_owner(value: str) -> PoolOwner | None:
    """Return the owner that a property names, or None for any other text."""
    store_id, _colon, rest = value.partition(":")
    generation, colon, host = rest.partition(":")
    counted = 0 < len(generation) <= MAX_GENERATION_DIGITS and DIGITS.issuperset(generation)
    valid = (
        len(store_id) == STORE_ID_DIGITS
        and HEX.issuperset(store_id)
        and counted
        and (generation == "0" or generation[0] != "0")
        and colon
        and len(host) <= MAX_HOST
        and HOST.issuperset(host)
    )
    return PoolOwner(store_id=store_id, generation=int(generation), host=host) if valid else None


def judge_machine(identity: StoreIdentity, machine: str) -> Hold | None:
    """Return why the store may not be used on a machine, or None."""
    if identity.machine in ("", machine):
        return None
    return Hold(
        reason="OTHER_MACHINE",
        sentence="this store belongs to another machine, so nothing is restored or changed here; "
        "after a move of the disk to new hardware run the command, on a copy of the machine "
        "`zfsiloctl machine cloned`",
        command="zfsiloctl machine moved",
    )


def judge_pool(
    root: str,
    value: str,
    identity: StoreIdentity,
    claim: PoolClaim | None,
    *,
    intended: Collection[str] = (),
    host: str = "",
) -> Hold | None:
    """Return why the pool below a root may not be used with this store, or None.

    `value`: of the property, "" without one; `intended`: values that live operations write;
    `host`: the id of this host.
    """
    generation = claim.generation if claim is not None else 0
    if value in intended or (not value and generation == 0):
        return None
    owner = parse_owner(value)
    if value and (owner is None or owner.store_id != identity.store_id):
        elsewhere = owner is None or owner.host != host
        name = f"of host {owner.host}" if owner is not None and owner.host else "unknown"
        return Hold(
            reason="POOL_OF_ANOTHER_STORE",
            sentence=f"the pool of {root} belongs to another store ({name}), so its volumes are "
            "neither served nor changed; if no other host uses it any more, take it over",
            command=TAKE_OVER if elsewhere else ADOPT,
            root=root,
        )
    on_pool = owner.generation if owner is not None else 0
    if on_pool == generation:
        return None
    reason, why = "POOL_OLDER", "rolled back or replaced since this store used it"
    if on_pool > generation:
        reason, why = "POOL_NEWER", "newer than this store, which was restored from a backup"
    return Hold(
        reason=reason,
        sentence=f"the pool of {root} is {why} (generation {on_pool}, store {generation}), so its "
        "volumes are neither served nor changed; merge what the pool knows into the store",
        command=ADOPT,
        root=root,
    )


def unknown_pool(root: str, error: ZfsiloError) -> Hold:
    """Return the hold of a pool whose owner cannot be read now; it is read again."""
    pool = root.partition("/")[0]
    commands = {
        "NO_DATASET": f"zfs create -p {root}",
        "NO_POOL": f"zpool import {pool}",
        "POOL_SUSPENDED": f"zpool clear {pool}",
    }
    return Hold(
        reason="POOL_UNKNOWN",
        sentence=f"the owner of the pool of {root} cannot be read, so its volumes are neither "
        f"served nor changed until it can ({error.message})",
        command=commands.get(error.reason, f"zpool status {pool}"),
        root=root,
    )
