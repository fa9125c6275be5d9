"""The store of this host's daemon, opened by root: certificates and tokens are recorded there."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zfsilod.ctl import paths
from zfsilod.ctl.require_local import check_root
from zfsilod.model.errors import FailedPrecondition
from zfsilod.security.audit import Audit, to_journal
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator


def record(action: str, subject: str) -> None:
    """Write an audit record of a change to certificates or tokens."""
    if not paths.simulation():
        caller = f"uid {os.getuid()} (zfsiloctl)"
        Audit(to_journal).record(caller, action, subject, outcome="DONE")


@contextmanager
def opened_store(args: Namespace, command: str) -> Iterator[Store]:
    """Open the store of this host's daemon."""
    check_root(args, command)
    if not (paths.state() / "store").exists():
        raise FailedPrecondition(
            f"there is no store in {paths.state()}; create it with systemctl start zfsilod.service",
            reason="NO_STORE",
        )
    store = Store(paths.state())
    try:
        store.check(store.host)
        yield store
    finally:
        store.close()
