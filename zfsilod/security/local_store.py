"""Opens the store of this host's daemon in another process, for certificates and tokens."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from zfsilod.model.errors import FailedPrecondition
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Store", "opened"]


@contextmanager
def opened(state: Path) -> Iterator[Store]:
    """Open the store in a state directory, besides a daemon that has it open."""
    if not (state / "store").exists():
        raise FailedPrecondition(
            f"there is no store in {state}; create it with systemctl start zfsilod.service",
            reason="NO_STORE",
        )
    store = Store(state)
    try:
        store.check(store.host)
        yield store
    finally:
        store.close()
