"""Migration of a store that an older version wrote, after the last worker of that version."""

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
    """Wait for the workers of the older version, then migrate the store. In the main thread only.

    A worker that starts meanwhile waits for its lock, and its first save fails because of the
    schema; its rollback runs with this version. Raises Busy when a worker does not end.
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
                with deadline(LOCK_DEADLINE_S, f"operation {unit} of an older version still runs"):
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
        store.migrate()
