"""Migration of a store of an older zfsilo, after the last worker of that version has exited."""

from __future__ import annotations

import os
from contextlib import ExitStack

from zfsilod.engine.locks import lock_path, wait_for_lock
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.storage.paths import exists
from zfsilod.storage.store import SCHEMA

if TYPE_CHECKING:
    from zfsilod.storage.paths import AnyPath
    from zfsilod.storage.store import Store


def migrate(store: Store, locks: AnyPath) -> None:
    """Bring the store to the current schema, in the main thread. Raises Busy.

    Running workers of the older zfsilo end first: their units are locked. A worker that starts
    meanwhile waits for its lock; the store then refuses its first save, and the rollback, which is
    of this zfsilo, reverts what it did.
    """
    with store.read() as txn:
        if txn.schema() >= SCHEMA:
            return
        units = sorted(txn.live_units())
    with ExitStack() as held:
        for unit in units:
            path = lock_path(locks, unit)
            if exists(path):
                descriptor = os.open(path, os.O_RDWR)
                held.callback(os.close, descriptor)
                wait_for_lock(descriptor, f"operation {unit} of an older zfsilo still runs")
        store.migrate()
