"""Checks of commands that need the local host, a host that is not simulated, or root."""

from __future__ import annotations

import os

from zfsilod.ctl import paths
from zfsilod.model.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace


def check_local(args: Namespace, command: str) -> None:
    """Refuse -H."""
    if args.remote:
        raise InvalidArgument(
            f"{command} works on the local host only; run it there, without -H", reason="LOCAL"
        )


def check_real(args: Namespace, command: str, instead: str = "") -> None:
    """Refuse -H and a simulation, for commands that change the units of the host."""
    check_local(args, command)
    if paths.simulation():
        raise FailedPrecondition(
            f"{command} does not work in a simulation (ZFSILO_SIMULATE); "
            f"{instead or 'run it on a real host'}",
            reason="SIMULATED",
        )


def check_root(args: Namespace, command: str) -> None:
    """Refuse -H and callers without access to the daemon's state directory."""
    check_local(args, command)
    if not os.access(paths.state(), os.R_OK | os.W_OK | os.X_OK) and paths.state().exists():
        raise PermissionDenied(
            f"{command} needs access to {paths.state()}; use sudo", reason="NOT_ROOT"
        )
