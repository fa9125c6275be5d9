"""Filesystems on the disks of sessions: found, made once, grown. Never made over anything.

mkfs runs only on a disk that is proved empty: it is the volume's by serial and size, nobody else
has it open, its first and last MiB read without error as zeros, and blkid finds nothing. (blkid
alone proves nothing: it exits with 2 for an empty disk, a read error and a missing one alike.)
Between that proof and the end of mkfs a file on this host says so. Thus what a killed mkfs left,
which is neither empty nor a filesystem, is known to be ours: it is wiped, and made again.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.host import mountinfo, superblock
from zfsilod.host.disks import Device, Disks, open_exclusively
from zfsilod.host.mountpoints import resolved
from zfsilod.host.regenerate_uuid import renew
from zfsilod.model.errors import Conflict, FailedPrecondition, InvalidArgument, Unavailable
from zfsilod.model.host_facts import Filesystem
from zfsilod.model.names import UUID
from zfsilod.storage.files import sync_folder

if TYPE_CHECKING:
    from zfsilod.host.run import Runner
    from zfsilod.host.superblock import Superblock
    from zfsilod.model.host_facts import Disk

PROOFS = Path("/var/lib/zfsilo/formatting")
MIB = 1024 * 1024
CHECK_TIMEOUT_S = 300
MAKE_TIMEOUT_S = 600
GROW_TIMEOUT_S = 600
BLKID_TIMEOUT_S = 30
FOUND_NOTHING = 2  # blkid(8)

# No label. No discard: a new zvol has nothing to discard, and one of terabytes takes minutes. No
# blocks reserved for root: a volume is for data, and its user expects the size that was asked for.
MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard", "-U", "{uuid}"),
    "xfs": ("mkfs.xfs", "-q", "-K", "-m", "uuid={uuid}"),
}
CHECK = {"ext4": ("e2fsck", "-f", "-n"), "xfs": ("xfs_repair", "-n")}  # they change nothing
CHECKED = (0, 1, 2, 4, 8)  # whole or torn; any other code says nothing of the filesystem

XFS_GEOMETRY = 0x80705864  # XFS_IOC_FSGEOMETRY_V1 of <xfs/xfs_fs.h>
XFS_GEOMETRY_BYTES = 112
XFS_MIN_GROUP_BLOCKS = 64  # a last group of fewer is dropped: xfs_growfs_data_private()


class RealBlock:
    """Filesystems on this host's disks."""

    def __init__(self, run: Runner, disks: Disks, proofs: Path = PROOFS) -> None:
        self._run = run
        self._disks = disks
        self._proofs = proofs

    # Found

    def has_filesystem(self, disk: Disk, filesystem: Filesystem) -> bool:
        device = self._disks.need(disk)
        found = read_superblock(device)
        if filesystem.state == "READY":
            self._check_known(device, found, filesystem)
            return True
        if found is None and not self._is_torn(disk, filesystem) and not _is_empty(device):
            raise self._occupied(device)
        return self._carries(device, found, filesystem)

    def _check_known(
        self, device: Device, found: Superblock | None, filesystem: Filesystem
    ) -> Superblock:
        """Return a filesystem that must be there. Raises Conflict: it is another, or none."""
        known = {filesystem.uuid, filesystem.origin}
        if found is None or found.type != filesystem.type or found.uuid not in known:
            raise self._lost(device, found, filesystem)
        return found

    # A clone's

    def is_renewed(self, disk: Disk, filesystem: Filesystem) -> bool:
        device = self._disks.need(disk)
        found = self._check_known(device, read_superblock(device), filesystem)
        return found.uuid == filesystem.uuid

    def renew(self, disk: Disk, filesystem: Filesystem) -> None:
        device = self._disks.need(disk)
        found = self._check_known(device, read_superblock(device), filesystem)
        if found.uuid == filesystem.uuid:
            return
        renew(self._run, device, found.type, filesystem.uuid, checksums=found.checksums)
        if not self.is_renewed(disk, filesystem):
            raise Unavailable(f"{device.path} kept its UUID", device=str(device.path))

    def find_filesystem(self, disk: Disk) -> Filesystem:
        device = self._disks.need(disk)
        found = read_superblock(device)
        if found is None:
            raise FailedPrecondition(f"the disk {device.path} has no filesystem of ours")
        return Filesystem(state="READY", type=found.type, uuid=found.uuid)

    def _carries(self, device: Device, found: Superblock | None, filesystem: Filesystem) -> bool:
        """Tell whether a filesystem that was found can be used, whether ours or adopted."""
        if found is None:
            return False
        if found.type != filesystem.type:
            raise Conflict(
                f"the disk {device.path} carries {found.type} {found.uuid} already, "
                f"not {filesystem.type}: it is never formatted again",
                reason="OTHER_FILESYSTEM", device=str(device.path), found=found.type,
            )  # fmt: skip
        return found.uuid != filesystem.uuid or self._is_whole(device, found.type)

    def _is_whole(self, device: Device, kind: str) -> bool:
        """Tell whether our own mkfs came to its end, by a check that changes nothing."""
        argv = [*CHECK[kind], str(device.path)]
        return self._run(argv, timeout_s=CHECK_TIMEOUT_S, ok=CHECKED).rc == 0

    def _lost(self, device: Device, found: Superblock | None, expected: Filesystem) -> Conflict:
        what = f"{found.type} {found.uuid}" if found else self._named(device) or "nothing"
        return Conflict(
            f"the disk {device.path} has {what}, though the server says that it has "
            f"{expected.type} {expected.uuid}: nothing is done to it",
            reason="FILESYSTEM_LOST", device=str(device.path), found=what,
        )  # fmt: skip

    def _occupied(self, device: Device) -> Conflict:
        what = self._named(device) or "data that is no filesystem we know"
        return Conflict(
            f"the disk {device.path} is not empty, it has {what}: it is never formatted",
            reason="NOT_EMPTY", device=str(device.path), found=what,
        )  # fmt: skip

    def _named(self, device: Device) -> str:
        """Return what blkid calls the content of a disk; "" when it finds nothing."""
        argv = ["blkid", "-p", "-o", "export", str(device.path)]
        done = self._run(argv, timeout_s=BLKID_TIMEOUT_S, ok=(0, FOUND_NOTHING, 8))
        lines = (line.partition("=") for line in done.stdout.splitlines())
        said = {name: value for name, _, value in lines}
        names = [said[key] for key in ("TYPE", "PTTYPE", "UUID") if key in said]
        return " ".join(names) or ("signatures of more than one kind" if done.rc == 8 else "")

    # Made

    def make_filesystem(self, disk: Disk, filesystem: Filesystem) -> None:
        _check_request(filesystem)
        device = self._disks.need(disk)
        if device.size_bytes != disk.size_bytes:
            raise Conflict(
                f"the disk {device.path} has {device.size_bytes} bytes, not {disk.size_bytes}: "
                "grow the volume here first",
                reason="OTHER_SIZE", device=str(device.path),
            )  # fmt: skip
        if self._carries(device, read_superblock(device), filesystem):
            return
        self._prove_empty(disk, device, filesystem)
        self._make(device, filesystem)
        found = read_superblock(device)
        if found is None or found.uuid != filesystem.uuid:
            raise Unavailable(f"mkfs left no filesystem on {device.path}", device=str(device.path))
        self._proof(filesystem).unlink(missing_ok=True)

    def _prove_empty(self, disk: Disk, device: Device, filesystem: Filesystem) -> None:
        descriptor = open_exclusively(device.path, "the disk", os.O_RDWR | os.O_DIRECT)
        try:
            if not _ends_are_zero(descriptor, device.size_bytes):
                if not self._is_ours(disk, device, filesystem):
                    raise self._occupied(device)
                _zero_ends(descriptor, device.size_bytes)
            if self._named(device):
                raise self._occupied(device)
            self._proofs.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_durably(self._proof(filesystem), disk.serial)
        finally:
            os.close(descriptor)

    def _is_ours(self, disk: Disk, device: Device, filesystem: Filesystem) -> bool:
        found = read_superblock(device)
        return self._is_torn(disk, filesystem) or (
            found is not None and found.uuid == filesystem.uuid
        )

    def _is_torn(self, disk: Disk, filesystem: Filesystem) -> bool:
        """Tell whether what is on the disk can only be from a mkfs of ours that did not end."""
        proof = self._proof(filesystem)
        return proof.exists() and proof.read_text() == disk.serial

    def _proof(self, filesystem: Filesystem) -> Path:
        _check_request(filesystem)
        return self._proofs / filesystem.uuid

    def _make(self, device: Device, filesystem: Filesystem) -> None:
        words = [word.format(uuid=filesystem.uuid) for word in MAKE[filesystem.type]]
        done = self._run([*words, str(device.path)], timeout_s=MAKE_TIMEOUT_S, ok=(0, 1))
        if done.rc == 0:
            return
        if "\nFilesystem must be larger than" in f"\n{done.stderr}":
            raise FailedPrecondition(
                f"{device.size_bytes} bytes are too few for {filesystem.type}: it needs 300 MiB",
                reason="TOO_SMALL",
            )
        raise done.failed()

    # Grown

    def fills(self, disk: Disk, path: str) -> bool:
        device = self._disks.need(disk)
        mount = mountinfo.at(resolved(path), mountinfo.read())
        if mount is None or mount.number != device.number:
            return False
        if mount.readonly or device.readonly:
            return True  # it cannot grow now, and has nothing to write that needed it
        if mount.type == "xfs":
            return _xfs_fills(path, device.size_bytes)
        found = read_superblock(device)
        return found is not None and found.fills(device.size_bytes)

    def grow(self, disk: Disk, path: str) -> None:
        device = self._disks.need(disk)
        mount = mountinfo.at(resolved(path), mountinfo.read())
        if mount is None or mount.number != device.number:
            raise FailedPrecondition(f"{device.path} is not mounted at {path}", path=path)
        xfs = mount.type == "xfs"
        argv = ["xfs_growfs", "-d", mount.path] if xfs else ["resize2fs", str(device.path)]
        self._run(argv, timeout_s=GROW_TIMEOUT_S)


def read_superblock(device: Device) -> Superblock | None:
    """Return the filesystem at the start of a disk, or None. A read error is no answer."""
    try:
        with device.path.open("rb", buffering=0) as file:
            return superblock.parse(file.read(superblock.BYTES))
    except OSError as error:
        raise _unreadable(device.path, error) from error


def _check_request(filesystem: Filesystem) -> None:
    if filesystem.state != "FORMATTING":
        raise FailedPrecondition("nothing is formatted before the server has noted it")
    if filesystem.type not in MAKE or not UUID.fullmatch(filesystem.uuid):
        raise InvalidArgument(f"no filesystem {filesystem.type[:20]!r} {filesystem.uuid[:40]!r}")


def _is_empty(device: Device) -> bool:
    descriptor = open_exclusively(device.path, "the disk", os.O_RDONLY | os.O_DIRECT)
    try:
        return _ends_are_zero(descriptor, device.size_bytes)
    finally:
        os.close(descriptor)


def _ends(size_bytes: int) -> tuple[int, int]:
    return 0, max(size_bytes - MIB, 0)


def _ends_are_zero(descriptor: int, size_bytes: int) -> bool:
    """Read the first and the last MiB from the disk itself: an older copy in memory proves nothing.

    Every signature that blkid knows lies there.
    """
    with mmap.mmap(-1, MIB) as buffer:  # direct reads need memory that begins at a page
        for offset in _ends(size_bytes):
            try:
                count = os.preadv(descriptor, [buffer], offset)
            except OSError as error:
                raise _unreadable(Path(f"/proc/self/fd/{descriptor}"), error) from error
            if count < min(MIB, size_bytes):
                raise Unavailable(f"only {count} bytes at {offset} of the disk could be read")
            if buffer[:count].strip(b"\0"):
                return False
    return True


def _zero_ends(descriptor: int, size_bytes: int) -> None:
    with mmap.mmap(-1, MIB) as zeros:
        for offset in _ends(size_bytes):
            os.pwritev(descriptor, [memoryview(zeros)[: min(MIB, size_bytes)]], offset)
    os.fsync(descriptor)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _xfs_fills(path: str, device_bytes: int) -> bool:
    """Ask the mounted filesystem: what XFS has on disk is older than what it knows."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        geometry = bytearray(XFS_GEOMETRY_BYTES)
        fcntl.ioctl(descriptor, XFS_GEOMETRY, geometry)
    finally:
        os.close(descriptor)
    block_bytes, _, group_blocks = struct.unpack_from("=III", geometry)
    blocks = struct.unpack_from("=Q", geometry, 32)[0]
    left = device_bytes // block_bytes - blocks
    whole_groups = blocks % group_blocks == 0
    return bool(left == 0 or (whole_groups and 0 < left < XFS_MIN_GROUP_BLOCKS))


def _unreadable(path: Path, error: OSError) -> Unavailable:
    return Unavailable(
        f"{path.resolve()} cannot be read: {error.strerror}", reason="READ_ERROR", device=str(path)
    )
