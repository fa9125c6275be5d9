"""What an operation's unit may do to the host: no more than its moves need. systemd.exec(5).

Four places are changed: the pool, the kernel's target, its initiator, and mounts. Each step belongs
to one, and each place has its capabilities and the paths that are written to. What mounts for the
host lives in the host's mount namespace, so it has none of the options that would make one.

There is no IPAddressDeny=: the sockets at which the kernel's target listens belong to the cgroup of
the worker that made them, and would stay deaf for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine import steps
from zfsilod.model.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.model.records import Step


class SandboxPart(Record):
    """A part of the host, and what it takes to change it."""

    steps: tuple[type[Step], ...]
    capabilities: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()  # sets of system calls, beyond @system-service
    mounts: bool = False  # in the host's mount namespace


POOL = SandboxPart(
    steps=(
        steps.Zvol,
        steps.ZvolSize,
        steps.ZvolProperty,
        steps.InTrash,
        steps.Cut,
        steps.Clone,
        steps.Reserved,
    ),
    capabilities=("CAP_SYS_ADMIN",),
)
TARGET = SandboxPart(
    steps=(
        steps.Backstore,
        steps.Target,
        steps.Lun,
        steps.Portals,
        steps.Enabled,
        steps.NoSession,
        steps.Fenced,
        steps.NoUnknownAcls,
        steps.Acl,
        steps.MappedLun,
        steps.NoExport,
        steps.NoAcl,
        steps.AclSecrets,
    ),
    capabilities=("CAP_SYS_ADMIN", "CAP_SYS_MODULE"),  # the kernel shows secrets to the first only
    calls=("@module",),
)
INITIATOR = SandboxPart(
    steps=(
        steps.Node,
        steps.NoNode,
        steps.Session,
        steps.SessionDropped,
        steps.DiskSize,
        steps.NodeSecrets,
        steps.SessionSecrets,
        steps.DiskResponsive,
    ),
    # The kernel tells iscsiadm the handle of a transport for the first only: without it a logout
    # finds no session, and says that it went well. It also shows and takes the secrets of sessions
    # for that one only. The second, where iscsi_tcp is not loaded yet.
    capabilities=("CAP_SYS_ADMIN", "CAP_SYS_MODULE"),
    calls=("@module",),
    paths=("/etc/iscsi", "/var/lib/iscsi", "/run/lock"),
)
MOUNTS = SandboxPart(
    steps=(
        steps.Formatted,
        steps.FilesystemUuidRegenerated,
        steps.LazyUnmounted,
        steps.MountPoint,
        steps.StagingMount,
        steps.FilesystemGrown,
        steps.BindMount,
        steps.DeviceBindMount,
    ),
    # To mount; to grow ext4 in use; to make a mount point in anybody's folder; to tell who is in
    # the way of an unmount.
    capabilities=(
        "CAP_SYS_ADMIN",
        "CAP_SYS_RESOURCE",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_SYS_PTRACE",
    ),
    calls=("@mount",),
    mounts=True,
)
SANDBOX_PARTS = (POOL, TARGET, INITIATOR, MOUNTS)
OWN_PATHS = ("/var/lib/zfsilo", "/run/zfsilo")

ALWAYS = {
    "LimitCORE": "0",  # it would hold secrets
    "UMask": "0077",
    "NoNewPrivileges": "yes",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "ProtectHostname": "yes",
    "RestrictAddressFamilies": "AF_UNIX AF_NETLINK",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallErrorNumber": "EPERM",
}
APART = {  # each of them makes a mount namespace
    "ProtectControlGroups": "yes",
    "ProtectHome": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectSystem": "strict",
}


def sandbox(needed: Iterable[Step]) -> dict[str, str]:
    """Return the settings of a unit that makes these steps, as a unit file has them."""
    kinds = {type(step) for step in needed}
    return settings([place for place in SANDBOX_PARTS if kinds & set(place.steps)])


def settings(places: Iterable[SandboxPart]) -> dict[str, str]:
    """Return the settings of a unit that changes these places."""
    found = list(places)
    calls = {each for place in found for each in place.calls}
    capabilities = {each for place in found for each in place.capabilities}
    chosen = ALWAYS | {
        "CapabilityBoundingSet": " ".join(sorted(capabilities)),
        "SystemCallFilter": " ".join(["@system-service", *sorted(calls)]),
    }
    if any(place.mounts for place in found):
        return chosen | {"RestrictNamespaces": "mnt"}  # in which a clone's journal is replayed
    paths = [*OWN_PATHS, *(f"-{path}" for place in found for path in place.paths)]
    modules = {} if "CAP_SYS_MODULE" in capabilities else {"ProtectKernelModules": "yes"}
    return (
        chosen | APART | modules | {"RestrictNamespaces": "yes", "ReadWritePaths": " ".join(paths)}
    )
