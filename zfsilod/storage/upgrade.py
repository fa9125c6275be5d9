"""A store that an older zfsilo wrote: brought to this one's schema when its last worker is gone."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from zfsilod.engine.worker import LOCK_DEADLINE_S, deadline
from zfsilod.storage.store import SCHEMA

if TYPE_CHECKING:
    from pathlib import Path

    from zfsilod.storage.store import Store


def upgrade(store: Store, locks: Path) -> None:
    """Migrate the store, in the main thread; workers of the older zfsilo come to their end first.

    One that starts meanwhile waits for its lock, and its first save is refused by the schema: its
    rollback, which is of this zfsilo already, takes it back. Raises Busy when one does not end.
    """
    with store.read() as txn:
        if txn.schema() >= SCHEMA:
            return
        units = sorted(txn.live_units())
    with ExitStack() as held:
        for unit in units:
            path = locks / f"{unit}.lock"
            if path.exists():
                descriptor = os.open(path, os.O_RDWR)
                held.callback(os.close, descriptor)
                with deadline(LOCK_DEADLINE_S, f"operation {unit} of an older zfsilo still runs"):
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
        store.migrate()
