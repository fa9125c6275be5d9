"""Comparison of the settings of two targets, of their sessions, disks and zvols. Pure."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Names, identities and counters: they differ between any two targets.
OWN = (
    # zvol
    *("zvol/creation", "zvol/createtxg", "zvol/guid", "zvol/objsetid", "zvol/zfsilo:*"),
    *("zvol/used*", "zvol/referenced", "zvol/logical*", "zvol/written", "zvol/*compressratio"),
    *("zvol/available", "zvol/snapshots_changed"),
    # LIO: drivers/target of the kernel
    *("backstore/info", "backstore/udev_path", "backstore/alias", "backstore/wwn/vpd_*"),
    *("backstore/wwn/vendor_id", "backstore/wwn/product_id", "backstore/wwn/revision"),
    *("group/dynamic_sessions", "group/rtpi", "acl/info", "acl/tag"),
    # nvmet: drivers/nvme/target of the kernel
    *("subsystem/attr_serial", "subsystem/attr_model", "namespace/device_*"),
    # SCSI disk, session and connection
    *("disk/dev", "disk/diskseq", "disk/stat", "disk/inflight", "disk/uevent"),
    *("disk/device/*_cnt", "disk/device/vpd_*", "disk/device/inquiry", "disk/device/wwid"),
    *("disk/device/vendor", "disk/device/model", "disk/device/rev", "disk/device/uevent"),
    *("session/targetname", "session/tsid", "session/isid", "session/target_id"),
    *("session/uevent", "session/creator", "connection/uevent", "connection/local_port"),
    *("connection/exp_statsn", "connection/statsn"),
    # NVMe disk, path and controller
    *("disk/wwid", "disk/uuid", "disk/nguid", "disk/eui", "path/wwid", "path/uuid", "path/nguid"),
    *("path/dev", "path/diskseq", "path/stat", "path/inflight", "path/uevent", "path/eui"),
    *("disk/device/serial", "disk/device/subsysnqn", "controller/serial", "controller/model"),
    *("controller/subsysnqn", "controller/hostnqn", "controller/hostid", "controller/cntlid"),
    *("controller/dev", "controller/uevent", "controller/tls_*"),
)


def differences(ours: Mapping[str, str], bare: Mapping[str, str]) -> list[str]:
    """Return the settings that differ though they should not, with both values."""
    return [
        f"{name}: {ours.get(name, 'none')!r}, bare {bare.get(name, 'none')!r}"
        for name in differing(ours, bare)
        if not is_own(name)
    ]


def identities(ours: Mapping[str, str], bare: Mapping[str, str]) -> list[str]:
    """Return the names of those that differ and may."""
    return [name for name in differing(ours, bare) if is_own(name)]


def differing(ours: Mapping[str, str], bare: Mapping[str, str]) -> list[str]:
    """Return the names of the settings that are not the same, or that only one of them has."""
    return [name for name in sorted(ours.keys() | bare.keys()) if ours.get(name) != bare.get(name)]


def is_own(name: str) -> bool:
    """Tell whether a setting is a name, an identity or a counter."""
    return any(fnmatchcase(name, pattern) for pattern in OWN)
