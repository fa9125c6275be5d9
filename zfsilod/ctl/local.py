"""What root does on the host itself: open the daemon's store, and write files for one reader."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.ctl import paths
from zfsilod.ctl.require_local import check_here
from zfsilod.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zfsilod.security.audit import Audit, to_journal
from zfsilod.security.join_file import make_join
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from zfsilod.security.join_file import Access

STDOUT = "-"


def record(action: str, subject: str) -> None:
    """Leave a record of what root did to whom this host believes."""
    if not paths.simulation():
        caller = f"uid {os.getuid()} (zfsiloctl)"
        Audit(to_journal).record(caller, action, subject, outcome="DONE")


@contextmanager
def opened_store(given: Namespace, what: str) -> Iterator[Store]:
    """Open the store of this host's daemon."""
    check_here(given, what)
    if not (paths.state() / "store").exists():
        raise FailedPrecondition(
            f"there is no store in {paths.state()} yet: systemctl start zfsilod.service",
            reason="NO_STORE",
        )
    store = Store(paths.state())
    try:
        store.check(store.host)
        yield store
    finally:
        store.close()


@contextmanager
def new_file(name: str) -> Iterator[Path | None]:
    """Make an empty file for root only, and remove it again when what follows fails."""
    if name == STDOUT:
        yield None
        return
    path = Path(name)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError as error:
        raise AlreadyExists(f"{path} exists: name another file, or remove it") from error
    except OSError as error:
        raise InvalidArgument(f"{path}: {os.strerror(error.errno or 0)}") from error
    try:
        yield path
    except BaseException:
        path.unlink()
        raise


def write_join(path: Path | None, join: Access) -> None:
    """Write a join file where `new_file` made room for it, or to standard output."""
    if path is None:
        sys.stdout.write(make_join(join))
    else:
        path.write_text(make_join(join))
