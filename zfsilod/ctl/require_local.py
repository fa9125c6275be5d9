"""What is refused to whoever is not on the host itself, or on no real one, or not root there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from zfsilod.ctl import paths
from zfsilod.model.errors import FailedPrecondition, InvalidArgument, PermissionDenied

if TYPE_CHECKING:
    from argparse import Namespace


def check_local(given: Namespace, what: str) -> None:
    """Refuse -H for what is done on a host itself."""
    if given.remote:
        raise InvalidArgument(f"{what} on the host itself, without -H", reason="LOCAL")


def check_real(given: Namespace, what: str) -> None:
    """Refuse -H, and a simulation, for what changes the units of the host itself."""
    check_local(given, what)
    if paths.simulation():
        raise FailedPrecondition(
            f"{what} on a real host: unset ZFSILO_SIMULATE", reason="SIMULATED"
        )


def check_here(given: Namespace, what: str) -> None:
    """Refuse -H, and whoever may not read the daemon's state, for what is root's."""
    check_local(given, what)
    if not os.access(paths.state(), os.R_OK | os.W_OK | os.X_OK) and paths.state().exists():
        raise PermissionDenied(f"{paths.state()} is for root only: use sudo", reason="NOT_ROOT")
