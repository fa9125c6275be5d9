"""Access of root to the local store, for certificates and tokens, with an audit record of each."""

from __future__ import annotations

import os

from zfsilod.ctl import paths
from zfsilod.ctl.require_local import check_root
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.security.audit import Audit, to_journal
from zfsilod.security.local_store import opened

if TYPE_CHECKING:
    from argparse import Namespace
    from contextlib import AbstractContextManager

    from zfsilod.storage.store import Store


def opened_store(args: Namespace, command: str) -> AbstractContextManager[Store]:
    """Return the store of this host's daemon, as a context."""
    check_root(args, command)
    return opened(paths.state())


def record(action: str, subject: str) -> None:
    """Write an audit record of a change to certificates or tokens."""
    if not paths.simulation():
        caller = f"uid {os.getuid()} (zfsiloctl)"
        Audit(to_journal).record(caller, action, subject, outcome="DONE")
