"""The sandbox of an operation's unit: only the permissions of its steps. systemd.exec(5).

Every step names the part of the host that it changes: the pool, the kernel's target, the kernel's
initiator, or mounts. Each part has its capabilities, system calls and writable paths here. A worker
that mounts for the host runs in the host's mount namespace, so its unit has none of the settings
that would create another one.

IPAddressDeny= is not used: the sockets of the kernel's target belong to the cgroup of the worker
that created them, and would receive nothing after the worker has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine.step import HostStep
from zfsilod.model.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.model.records import Step
    from zfsilod.model.words import SandboxPart


class Permissions(Record):
    """The permissions that steps on one part of the host need."""

    capabilities: tuple[str, ...]
    calls: tuple[str, ...] = ()  # sets of system calls, beyond @system-service
    paths: tuple[str, ...] = ()  # writable, beyond OWN_PATHS
    families: tuple[str, ...] = ()  # of sockets, beyond FAMILIES
    mounts: bool = False  # in the host's mount namespace
    groups: bool = False  # control groups are changed


# Every part sees which processes have a device open: the folder of their descriptors is readable by
# its owner only (CAP_DAC_READ_SEARCH), and its links by who may trace the process.
SEE_USERS = ("CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE")
PERMISSIONS: dict[SandboxPart, Permissions] = {
    "POOL": Permissions(capabilities=("CAP_SYS_ADMIN", *SEE_USERS)),
    # The kernel shows secrets to CAP_SYS_ADMIN only. bind(2) tells which addresses this host has.
    # The threads of sessions are moved to the control group of limits. LIO saves persistent
    # reservations in one of the paths.
    "TARGET": Permissions(
        capabilities=("CAP_SYS_ADMIN", "CAP_SYS_MODULE", *SEE_USERS),
        calls=("@module",),
        paths=("/etc/target", "/var/target"),
        families=("AF_INET", "AF_INET6"),
        groups=True,
    ),
    # The kernel tells iscsiadm the handle of a transport with CAP_SYS_ADMIN only: without it a
    # logout finds no session and reports success. The secrets of sessions need it too.
    # CAP_SYS_MODULE loads iscsi_tcp. A session moves to another portal with a connection to it.
    # multipath(8) removes the WWID of a map from a file in /etc/multipath.
    "INITIATOR": Permissions(
        capabilities=("CAP_SYS_ADMIN", "CAP_SYS_MODULE", *SEE_USERS),
        calls=("@module",),
        paths=("/etc/iscsi", "/etc/multipath", "/var/lib/iscsi", "/run/lock"),
        families=("AF_INET", "AF_INET6"),
    ),
    "MOUNTS": Permissions(
        capabilities=(
            "CAP_SYS_ADMIN",  # to mount
            "CAP_SYS_RESOURCE",  # to grow a mounted ext4
            "CAP_DAC_OVERRIDE",  # to create a mount point in a directory of any user
            "CAP_FOWNER",
            *SEE_USERS,
        ),
        calls=("@mount",),
        mounts=True,
    ),
}
FAMILIES = ("AF_NETLINK", "AF_UNIX")
OWN_PATHS = ("/var/lib/zfsilo", "/run/zfsilo")

ALWAYS = {
    "LimitCORE": "0",  # a core dump would hold secrets
    "UMask": "0077",
    "NoNewPrivileges": "yes",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "ProtectHostname": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallErrorNumber": "EPERM",
}
NAMESPACED = {  # each creates a mount namespace
    "ProtectControlGroups": "yes",
    "ProtectHome": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectSystem": "strict",
}


def sandbox(steps: Iterable[Step]) -> dict[str, str]:
    """Return the settings of a unit that runs these steps, as a unit file has them."""
    return settings({step.part for step in steps if isinstance(step, HostStep)})


def settings(parts: Iterable[SandboxPart]) -> dict[str, str]:
    """Return the settings of a unit that changes these parts of the host."""
    needed = [PERMISSIONS[part] for part in sorted(parts)]
    calls = {call for permissions in needed for call in permissions.calls}
    capabilities = {name for permissions in needed for name in permissions.capabilities}
    families = {name for permissions in needed for name in permissions.families}
    allowed = ALWAYS | {
        "CapabilityBoundingSet": " ".join(sorted(capabilities)),
        "RestrictAddressFamilies": " ".join(sorted({*FAMILIES, *families})),
        "SystemCallFilter": " ".join(["@system-service", *sorted(calls)]),
    }
    if any(permissions.mounts for permissions in needed):
        return allowed | {"RestrictNamespaces": "mnt"}  # to replay the journal of a clone
    paths = [*OWN_PATHS, *(f"-{path}" for permissions in needed for path in permissions.paths)]
    allowed |= NAMESPACED | {"RestrictNamespaces": "yes", "ReadWritePaths": " ".join(paths)}
    if any(permissions.groups for permissions in needed):
        del allowed["ProtectControlGroups"]
    if "CAP_SYS_MODULE" not in capabilities:
        allowed["ProtectKernelModules"] = "yes"
    return allowed
