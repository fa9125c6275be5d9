"""The adapters of all transports of a host, and the one of a target.

The name of a target tells its transport. A further transport is one more line of `targets` and of
`sessions`.
"""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import transport_of

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters
    from zfsilod.host.transport_protocols import SessionAdapter, TargetAdapter
    from zfsilod.model.host_facts import Disk, ExportPath, SessionProblem


def targets(host: HostAdapters) -> tuple[TargetAdapter, ...]:
    """Return the targets of a host, of every transport."""
    return host.lio, host.nvmet


def sessions(host: HostAdapters) -> tuple[SessionAdapter, ...]:
    """Return the clients of a host, of every transport."""
    return host.iscsi, host.nvme


def target_adapter(host: HostAdapters, target: str) -> TargetAdapter:
    """Return the adapter of a target on its server."""
    return host.nvmet if transport_of(target) == "NVME" else host.lio


def session_adapter(host: HostAdapters, target: str) -> SessionAdapter:
    """Return the adapter of a target on its client."""
    return host.nvme if transport_of(target) == "NVME" else host.iscsi


def export_paths(host: HostAdapters) -> list[ExportPath]:
    """Return every path from any target of a host to a zvol."""
    return [path for adapter in targets(host) for path in adapter.export_paths()]


def session_problems(host: HostAdapters, disks: list[Disk]) -> dict[str, SessionProblem]:
    """Return the problems of the sessions of disks, by target."""
    problems: dict[str, SessionProblem] = {}
    for adapter in sessions(host):
        own = [disk for disk in disks if session_adapter(host, disk.target) is adapter]
        problems |= adapter.problems(own) if own else {}
    return problems
