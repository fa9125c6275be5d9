"""The ways to use a volume: which of them there are, and why another one is not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from csi.v1 import csi_pb2
from zfsilo.v1 import volume_pb2

from zfsilo_csi.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Iterable

Mode = csi_pb2.VolumeCapability.AccessMode
FILESYSTEMS = ("", "ext4", "xfs")
FLAG = re.compile(r"[a-z][a-z0-9_]{0,31}(?:=[A-Za-z0-9._:-]{1,64})?")
MOUNT_FLAGS = (  # those that zfsilod takes: a test compares
    "noatime", "nodiratime", "relatime", "strictatime", "lazytime", "nosuid", "nodev", "noexec",
    "sync", "dirsync", "discard", "nodiscard", "commit", "data", "errors", "barrier", "nobarrier",
    "journal_checksum", "user_xattr", "acl", "inode64", "largeio", "logbufs", "logbsize",
    "allocsize", "swalloc", "usrquota", "grpquota", "prjquota", "uquota", "gquota", "pquota",
)  # fmt: skip
SINGLE_NODE = (
    Mode.SINGLE_NODE_WRITER,
    Mode.SINGLE_NODE_READER_ONLY,
    Mode.SINGLE_NODE_SINGLE_WRITER,
    Mode.SINGLE_NODE_MULTI_WRITER,
)
SHARED_WRITERS = (Mode.MULTI_NODE_SINGLE_WRITER, Mode.MULTI_NODE_MULTI_WRITER)
READERS = (Mode.SINGLE_NODE_READER_ONLY, Mode.MULTI_NODE_READER_ONLY)
# May appear at one path of a node only: the second one is refused.
ONE_PATH = (Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_READER_ONLY, Mode.SINGLE_NODE_SINGLE_WRITER)


def problem(capability: csi_pb2.VolumeCapability) -> str:
    """Tell why a volume cannot be used in this way; "": it can."""
    kind, mode = capability.WhichOneof("access_type"), capability.access_mode.mode
    if kind is None:
        return "the capability is neither for a block device nor for a mount"
    if mode == Mode.UNKNOWN or mode not in Mode.Mode.values():
        return "the capability has no access mode that is known here"
    if kind == "mount":
        if mode in SHARED_WRITERS:
            return (
                f"{Mode.Mode.Name(mode)} is for raw block volumes only: ext4 and xfs on several "
                "writing nodes would be destroyed"
            )
        return _mount_problem(capability.mount)
    return ""


def _mount_problem(mount: csi_pb2.VolumeCapability.MountVolume) -> str:
    if mount.fs_type not in FILESYSTEMS:
        return f"the filesystem {mount.fs_type[:40]!r} is neither ext4 nor xfs"
    if mount.volume_mount_group:
        return "a volume mount group is not supported: use fsGroup"
    for flag in mount.mount_flags:
        if not FLAG.fullmatch(flag) or flag.partition("=")[0] not in MOUNT_FLAGS:
            return f"the mount flag {flag[:80]!r} is not allowed"
    return ""


def check(capability: csi_pb2.VolumeCapability) -> None:
    """Raise INVALID_ARGUMENT unless a volume can be used in this way."""
    complaint = problem(capability)
    if complaint:
        raise invalid(complaint)


def check_all(capabilities: Iterable[csi_pb2.VolumeCapability]) -> volume_pb2.Mode:
    """Return the mode of a volume for all these uses, else raise INVALID_ARGUMENT."""
    modes = set()
    for each in capabilities:
        check(each)
        modes.add(volume_mode(each))
    if not modes:
        raise invalid("the volume capabilities are missing")
    if len(modes) > 1:
        raise invalid("a volume is a block device or a filesystem for good, not both")
    return modes.pop()


def volume_mode(capability: csi_pb2.VolumeCapability) -> volume_pb2.Mode:
    """Return what a volume has to be to be used in this way."""
    block = capability.WhichOneof("access_type") == "block"
    return volume_pb2.MODE_BLOCK if block else volume_pb2.MODE_FILESYSTEM


def access_mode(mode: csi_pb2.VolumeCapability.AccessMode.Mode) -> volume_pb2.AccessMode:
    """Return zfsilod's name of an access mode: the same word."""
    number: Any = volume_pb2.AccessMode.Value(f"ACCESS_MODE_{Mode.Mode.Name(mode)}")
    return number  # type: ignore[no-any-return] # protobuf has a type of its own for each enum


def granted(capabilities: Iterable[csi_pb2.VolumeCapability]) -> list[volume_pb2.AccessMode]:
    """Return the access modes that a new volume gets.

    Every volume may be used by one node in whichever way: Kubernetes lets a claim go from
    ReadWriteOnce to ReadWriteOncePod later. What several nodes may do, only who asks for it gets.
    """
    asked = {each.access_mode.mode for each in capabilities} | set(SINGLE_NODE)
    return [access_mode(each) for each in sorted(asked)]


def unusable(volume: volume_pb2.Volume, capability: csi_pb2.VolumeCapability) -> str:
    """Tell why this volume cannot be used in this way; "": it can."""
    complaint = problem(capability)
    if complaint:
        return complaint
    if volume_mode(capability) != volume.mode:
        return f"{volume.id} is a {volume_pb2.Mode.Name(volume.mode)[5:].lower()} volume"
    if admitted(volume, capability) is None:
        return f"{volume.id} was not made for {Mode.Mode.Name(capability.access_mode.mode)}"
    return ""


def admitted(
    volume: volume_pb2.Volume, capability: csi_pb2.VolumeCapability
) -> volume_pb2.AccessMode | None:
    """Return the access mode that a volume is published in, or None.

    A volume that was made by hand allows one writing node, and has not heard of finer words.
    """
    mode = capability.access_mode.mode
    if access_mode(mode) in volume.access_modes:
        return access_mode(mode)
    plain = access_mode(Mode.SINGLE_NODE_WRITER)
    return plain if mode in SINGLE_NODE and plain in volume.access_modes else None
