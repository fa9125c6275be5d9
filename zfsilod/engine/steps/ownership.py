"""The step that claims the pool of a dataset root, and the comparison of claim and pool."""

from __future__ import annotations

from zfsilod.engine.step import OneWay, touches_pool
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.ownership import (
    HOLDS,
    IDENTITY,
    PoolClaim,
    StoreIdentity,
    judge_machine,
    judge_pool,
    unknown_pool,
)
from zfsilod.model.records import Resources

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from zfsilod.host import HostAdapters
    from zfsilod.host.server_protocols import ZfsAdapter
    from zfsilod.model.ownership import Hold
    from zfsilod.model.records import Operation
    from zfsilod.storage.store import Store
    from zfsilod.storage.transaction import Transaction

__all__ = ["HOLDS", "PoolOwned", "check_ownership", "compare_pool"]


class PoolOwned(OneWay, tag="PoolOwned", part="POOL"):
    """The dataset root carries this owner. A generation is never given twice, so it stays."""

    final = (True,)
    root: str
    owner: str  # PoolOwner as text

    def probe(self, host: HostAdapters) -> bool:
        return host.zfs.find_owner(self.root) == self.owner

    def do(self, host: HostAdapters) -> None:
        host.zfs.set_owner(self.root, self.owner)

    def fact(self) -> str:
        return f"the pool of {self.root} belongs to this store"

    def describe_do(self) -> str:
        return f"set property zfsilo:owner of {self.root} to {self.owner}"

    def resources(self) -> Resources:
        return Resources(datasets=(self.root,))


def check_ownership(store: Store, host: HostAdapters, operation: Operation) -> None:
    """Raise unless the store belongs to this machine, and to the pool that a rollback changes.

    A store that was restored from a backup knows operations that have ended since, and a rollback
    of these would destroy what they made.
    """
    with store.read() as txn:
        identity = txn.get(StoreIdentity, IDENTITY)
    if identity is None:
        return  # no daemon of this version has started yet
    hold = judge_machine(identity, host.machine_id())
    claims = any(isinstance(action.step, PoolOwned) for action in operation.actions)
    if hold is None and identity.root and touches_pool(operation) and not claims:
        hold = compare_pool(store.read, host.zfs, identity.root)
    if hold is not None:
        raise hold.error()


def compare_pool(
    read: Callable[[], AbstractContextManager[Transaction]],
    zfs: ZfsAdapter,
    root: str,
    *,
    host: str = "",
) -> Hold | None:
    """Return why the pool below a root may not be used with this store, or None.

    The store is read before and after the property: an operation that claims the pool may end
    meanwhile. While it lives, the pool has the previous owner or the intended one.
    """

    def recorded() -> tuple[StoreIdentity, PoolClaim | None, frozenset[str]]:
        with read() as txn:
            identity = txn.get(StoreIdentity, IDENTITY)
            assert identity is not None, "the daemon makes the identity at its start"
            return identity, txn.get(PoolClaim, root), _intended(txn, root)

    before = recorded()
    try:
        value = zfs.find_owner(root)
    except ZfsiloError as error:
        return unknown_pool(root, error)
    first, second = (
        judge_pool(root, value, identity, claim, intended=intended, host=host)
        for identity, claim, intended in (before, recorded())
    )
    return first and second


def _intended(txn: Transaction, root: str) -> frozenset[str]:
    return frozenset(
        action.step.owner
        for operation in txn.live()
        for action in operation.actions
        if isinstance(action.step, PoolOwned) and action.step.root == root
    )
