"""Volume capabilities: the supported access types and modes, and zfsilod's terms for them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from csi.v1 import csi_pb2
from zfsilo.v1 import volume_pb2

from zfsilo_csi.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Iterable

Mode = csi_pb2.VolumeCapability.AccessMode
FILESYSTEMS = ("", "ext4", "xfs")  # "": zfsilod's default
FLAG = re.compile(r"[a-z_][a-z0-9_]{0,31}(?:=[A-Za-z0-9._:-]{1,64})?")
MOUNT_FLAGS = (  # equal to zfsilod's: a test compares them
    "noatime", "nodiratime", "relatime", "strictatime", "lazytime", "nosuid", "nodev", "noexec",
    "sync", "dirsync", "discard", "nodiscard", "commit", "data", "errors", "barrier", "nobarrier",
    "journal_checksum", "user_xattr", "acl", "inode64", "largeio", "logbufs", "logbsize",
    "allocsize", "swalloc", "usrquota", "grpquota", "prjquota", "uquota", "gquota", "pquota",
    "nofail", "_netdev", "norelatime", "nolazytime", "async", "context", "fscontext", "defcontext",
    "rootcontext", "nodelalloc", "delalloc", "stripe", "auto_da_alloc", "noauto_da_alloc",
    "max_batch_time", "min_batch_time", "init_itable", "noinit_itable", "inode_readahead_blks",
    "dioread_lock", "dioread_nolock", "nouser_xattr", "noacl", "inode32", "sunit", "swidth",
    "nolargeio", "wsync",
)  # fmt: skip
SINGLE_NODE = (
    Mode.SINGLE_NODE_WRITER,
    Mode.SINGLE_NODE_READER_ONLY,
    Mode.SINGLE_NODE_SINGLE_WRITER,
    Mode.SINGLE_NODE_MULTI_WRITER,
)
SHARED_WRITERS = (Mode.MULTI_NODE_SINGLE_WRITER, Mode.MULTI_NODE_MULTI_WRITER)
READERS = (Mode.SINGLE_NODE_READER_ONLY, Mode.MULTI_NODE_READER_ONLY)
# Modes that allow one target path per node: a second path is refused.
ONE_PATH = (Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_READER_ONLY, Mode.SINGLE_NODE_SINGLE_WRITER)


def problem(
    capability: csi_pb2.VolumeCapability,
    transport: volume_pb2.Transport = volume_pb2.TRANSPORT_ISCSI,
) -> str:
    """Return why no volume of a transport can have a capability; "" if one can."""
    kind, mode = capability.WhichOneof("access_type"), capability.access_mode.mode
    if kind is None:
        return "volume capability has no access type; set block or mount"
    if mode == Mode.UNKNOWN or mode not in Mode.Mode.values():
        return "volume capability has no known access mode; set one that the CSI protocol defines"
    if mode in READERS and transport == volume_pb2.TRANSPORT_NVME:
        return (
            f"access mode {Mode.Mode.Name(mode)} is read-only, and the kernel's NVMe target has no "
            "write protection for a host; use a class with transport iscsi"
        )
    if kind == "block":
        return ""
    if mode in SHARED_WRITERS:
        return (
            f"access mode {Mode.Mode.Name(mode)} is for raw block volumes only, because writers on "
            "several nodes destroy ext4 and xfs; use volumeMode Block"
        )
    return _mount_problem(capability.mount)


def _mount_problem(mount: csi_pb2.VolumeCapability.MountVolume) -> str:
    if mount.fs_type not in FILESYSTEMS:
        return f"filesystem {mount.fs_type[:40]!r} is not supported; use ext4 or xfs"
    if mount.volume_mount_group:
        return "volume_mount_group is not supported; use fsGroup"
    for flag in mount.mount_flags:
        if not FLAG.fullmatch(flag) or flag.partition("=")[0] not in MOUNT_FLAGS:
            return f"mount flag {flag[:80]!r} is not allowed; use only {', '.join(MOUNT_FLAGS)}"
    return ""


def check(
    capability: csi_pb2.VolumeCapability,
    transport: volume_pb2.Transport = volume_pb2.TRANSPORT_ISCSI,
) -> None:
    """Raise INVALID_ARGUMENT unless a volume of a transport can have a capability."""
    complaint = problem(capability, transport)
    if complaint:
        raise invalid(complaint)


def check_all(
    capabilities: Iterable[csi_pb2.VolumeCapability], transport: volume_pb2.Transport
) -> volume_pb2.Mode:
    """Return the mode of a volume with these capabilities, else raise INVALID_ARGUMENT."""
    modes = set()
    for capability in capabilities:
        check(capability, transport)
        modes.add(volume_mode(capability))
    if not modes:
        raise invalid("volume_capabilities are missing")
    if len(modes) > 1:
        raise invalid(
            "volume_capabilities ask for both block and mount; "
            "request only one, because the mode of a volume never changes"
        )
    return modes.pop()


def is_read_only(capabilities: Iterable[csi_pb2.VolumeCapability]) -> bool:
    """Tell whether all capabilities only read a filesystem."""
    return all(
        capability.WhichOneof("access_type") == "mount" and capability.access_mode.mode in READERS
        for capability in capabilities
    )


def volume_mode(capability: csi_pb2.VolumeCapability) -> volume_pb2.Mode:
    """Return the volume mode that a capability requires."""
    block = capability.WhichOneof("access_type") == "block"
    return volume_pb2.MODE_BLOCK if block else volume_pb2.MODE_FILESYSTEM


def access_mode(mode: csi_pb2.VolumeCapability.AccessMode.Mode) -> volume_pb2.AccessMode:
    """Return zfsilod's access mode, which has the same name."""
    number: Any = volume_pb2.AccessMode.Value(f"ACCESS_MODE_{Mode.Mode.Name(mode)}")
    return number  # type: ignore[no-any-return] # protobuf has a type of its own for each enum


def allowed_modes(
    capabilities: Iterable[csi_pb2.VolumeCapability],
) -> list[volume_pb2.AccessMode]:
    """Return the access modes to allow for a new volume.

    These are all single-node modes, since Kubernetes may change a claim from ReadWriteOnce to
    ReadWriteOncePod later, and of the multi-node modes those that are requested.
    """
    modes = {capability.access_mode.mode for capability in capabilities} | set(SINGLE_NODE)
    return [access_mode(mode) for mode in sorted(modes)]


def unusable(volume: volume_pb2.Volume, capability: csi_pb2.VolumeCapability) -> str:
    """Return why a volume does not have a capability; "" if it has."""
    complaint = problem(capability, volume.transport)
    if complaint:
        return complaint
    wanted = volume_mode(capability)
    if wanted != volume.mode:
        return (
            f"volume {volume.id} is a {_mode_name(volume.mode)} volume; "
            f"it cannot be used as a {_mode_name(wanted)} volume"
        )
    if publication_mode(volume, capability) is None:
        return (
            f"volume {volume.id} does not allow access mode "
            f"{Mode.Mode.Name(capability.access_mode.mode)}; "
            "create a volume with this mode in its volume_capabilities"
        )
    return ""


def _mode_name(mode: volume_pb2.Mode) -> str:
    return volume_pb2.Mode.Name(mode).removeprefix("MODE_").lower()


def publication_mode(
    volume: volume_pb2.Volume, capability: csi_pb2.VolumeCapability
) -> volume_pb2.AccessMode | None:
    """Return the access mode to publish a volume with, or None if the volume forbids it.

    A volume that was not created by CSI allows SINGLE_NODE_WRITER only, which then stands for
    every single-node mode.
    """
    mode = capability.access_mode.mode
    if access_mode(mode) in volume.access_modes:
        return access_mode(mode)
    plain = access_mode(Mode.SINGLE_NODE_WRITER)
    return plain if mode in SINGLE_NODE and plain in volume.access_modes else None
