"""Filesystems on the disks of iSCSI sessions: probed, made once on an empty disk, and grown.

mkfs runs only on a disk that is proved to be empty: it has the serial and the size of the volume,
it opens with O_EXCL, its first and last MiB are zeros, and `blkid -p` finds nothing. blkid(8) alone
does not prove it, since it exits with 2 for an empty disk, a read error and a missing disk alike.

From that proof until mkfs has ended a file on this host, /var/lib/zfsilo/formatting/UUID, holds the
serial of the disk. Only with this proof is a filesystem half-made: it is wiped and made again when
its superblock, if there is one, is the expected one and was never mounted. Everything else that is
neither empty nor valid needs a repair by a person, and is left unchanged (NEEDS_FSCK, NOT_EMPTY).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

from zfsilod.host import mountinfo, superblock
from zfsilod.host.disks import Disks, in_use, open_exclusively, users_beside
from zfsilod.host.places import resolved
from zfsilod.model.errors import Conflict, FailedPrecondition, InvalidArgument, Unavailable
from zfsilod.model.host_facts import Filesystem
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import is_uuid
from zfsilod.storage.files import make_folder, sync_folder
from zfsilod.storage.paths import exists, read_text, remove_file

if TYPE_CHECKING:
    from zfsilod.host.device import Device
    from zfsilod.host.run import Runner
    from zfsilod.host.superblock import Superblock
    from zfsilod.model.host_facts import Disk
    from zfsilod.storage.paths import AnyPath

PROOFS = "/var/lib/zfsilo/formatting"
MIB = 1024 * 1024
CHECK_TIMEOUT_S = 300
MAKE_TIMEOUT_S = 600
GROW_TIMEOUT_S = 600
BLKID_TIMEOUT_S = 30
BLKID_NOTHING, BLKID_AMBIVALENT = 2, 8  # exit codes of blkid(8)

# mke2fs(8), mkfs.xfs(8). No label. No discard: a new zvol has nothing to discard, and it takes
# minutes on one of terabytes. No blocks reserved for root: the user expects the requested size.
MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard", "-U", "{uuid}"),
    "xfs": ("mkfs.xfs", "-q", "-K", "-m", "uuid={uuid}"),
}
CHECK = {"ext4": ("e2fsck", "-f", "-n"), "xfs": ("xfs_repair", "-n")}  # read-only checks
REPAIR = {"ext4": "e2fsck -f", "xfs": "xfs_repair"}  # the commands for a person
CHECKED = (0, 1, 2, 4, 8, 12)  # e2fsck(8), a sum: 4 needs a repair, 8 the check ended early

XFS_GEOMETRY = 0x80705864  # XFS_IOC_FSGEOMETRY_V1 of <xfs/xfs_fs.h>
XFS_GEOMETRY_BYTES = 112
XFS_MIN_GROUP_BLOCKS = 64  # xfs_growfs_data_private() drops a last group of fewer blocks


class RealBlock:
    """The filesystems on the disks of this host; see BlockAdapter."""

    def __init__(self, run: Runner, disks: Disks, proofs: AnyPath = PROOFS) -> None:
        self._run = run
        self._disks = disks
        self._proofs = os.fspath(proofs)

    # Probing

    def has_filesystem(self, disk: Disk, filesystem: Filesystem) -> bool:
        device = self._disks.need(disk)
        present = read_superblock(device)
        if filesystem.state == "READY":
            self._check_known(device, present, filesystem)
            return True
        if present is None and not self._is_torn(disk, filesystem) and not _is_empty(device):
            raise self._not_empty(device)
        return self._is_usable(disk, device, present, filesystem)

    def _check_known(
        self, device: Device, present: Superblock | None, filesystem: Filesystem
    ) -> Superblock:
        """Return the present filesystem, with the UUID of the volume or of its origin.

        Raises Conflict (FILESYSTEM_LOST) when it is missing or another.
        """
        known = {filesystem.uuid, filesystem.origin}
        if present is not None and present.type == filesystem.type and present.uuid in known:
            return present
        content = f"{present.type} {present.uuid}" if present else self._content(device)
        content = content or "nothing"
        raise Conflict(
            f"the disk {device.path} has {content}, but the server reports "
            f"{filesystem.type} {filesystem.uuid}; the disk is left unchanged",
            reason="FILESYSTEM_LOST",
            device=device.path,
            found=content,
        )

    def find_filesystem(self, disk: Disk) -> Filesystem:
        device = self._disks.need(disk)
        present = read_superblock(device)
        if present is None:
            raise FailedPrecondition(f"the disk {device.path} has no filesystem")
        return Filesystem(state="READY", type=present.type, uuid=present.uuid)

    def _is_usable(
        self, disk: Disk, device: Device, present: Superblock | None, filesystem: Filesystem
    ) -> bool:
        """Tell whether the present filesystem is used: adopted, or made completely by zfsilo.

        False: it is missing or half-made. Raises Conflict (NEEDS_FSCK) when it needs a repair.
        """
        if present is None:
            return False
        if present.type != filesystem.type:
            raise Conflict(
                f"the disk {device.path} has a filesystem already, {present.type} {present.uuid}, "
                f"and is not formatted again with {filesystem.type}",
                reason="OTHER_FILESYSTEM",
                device=device.path,
                found=present.type,
            )
        if present.uuid != filesystem.uuid:
            return True
        # A check that changes nothing shows whether mkfs has ended: `e2fsck -n`.
        argv = [*CHECK[present.type], device.path]
        if self._run(argv, timeout_s=CHECK_TIMEOUT_S, ok=CHECKED).rc == 0:
            return True
        if present.never_used and self._is_torn(disk, filesystem):
            return False
        raise Conflict(
            f"the {present.type} filesystem on {device.path} needs a repair and is not formatted "
            f"again: run `{REPAIR[present.type]} {device.path}`",
            reason="NEEDS_FSCK",
            device=device.path,
            found=f"{present.type} {present.uuid}",
        )

    def _not_empty(self, device: Device) -> Conflict:
        content = self._content(device) or "unknown data"
        return Conflict(
            f"the disk {device.path} is not empty and is not formatted: it has {content}",
            reason="NOT_EMPTY",
            device=device.path,
            found=content,
        )

    def _content(self, device: Device) -> str:
        """Return the content of a disk as blkid(8) names it; "" when it finds no signature."""
        argv = ["blkid", "-p", "-o", "export", device.path]
        ok = (0, BLKID_NOTHING, BLKID_AMBIVALENT)
        done = self._run(argv, timeout_s=BLKID_TIMEOUT_S, ok=ok)
        tags: dict[str, str] = {}
        for line in done.stdout.split("\n"):
            name, _, value = line.partition("=")
            tags.setdefault(name, value)  # a label is listed after the type
        content = " ".join(tags[name] for name in ("TYPE", "PTTYPE", "UUID") if name in tags)
        if done.rc == BLKID_AMBIVALENT:
            return content or "several conflicting signatures"
        return content

    # The UUID of a clone's filesystem

    def has_own_uuid(self, disk: Disk, filesystem: Filesystem) -> bool:
        device = self._disks.need(disk)
        present = self._check_known(device, read_superblock(device), filesystem)
        return present.uuid == filesystem.uuid

    def regenerate_uuid(self, disk: Disk, filesystem: Filesystem) -> None:
        device = self._disks.need(disk)
        present = self._check_known(device, read_superblock(device), filesystem)
        if present.uuid == filesystem.uuid:
            return
        from zfsilod.host.regenerate_uuid import regenerate_uuid  # for clones only

        regenerate_uuid(
            self._run, device, present.type, filesystem.uuid, checksums=present.checksums
        )
        if not self.has_own_uuid(disk, filesystem):
            raise Unavailable(
                f"the filesystem on {device.path} still has its old UUID", device=device.path
            )

    # Making

    def make_filesystem(self, disk: Disk, filesystem: Filesystem) -> None:
        _check_request(filesystem)
        device = self._disks.need(disk)
        if device.size_bytes != disk.size_bytes:
            raise Conflict(
                f"the disk {device.path} has {device.size_bytes} bytes, not {disk.size_bytes}; "
                "grow the volume on this host first",
                reason="OTHER_SIZE",
                device=device.path,
            )
        if self._is_usable(disk, device, read_superblock(device), filesystem):
            return
        self._prove_empty(disk, device, filesystem)
        self._make(device, filesystem)
        present = read_superblock(device)
        if present is None or present.uuid != filesystem.uuid:
            raise Unavailable(
                f"mkfs made no filesystem on the disk {device.path}", device=device.path
            )
        remove_file(self._proof(filesystem))

    def _prove_empty(self, disk: Disk, device: Device, filesystem: Filesystem) -> None:
        """Prove that a disk is empty, or wipe what an interrupted mkfs left; save the proof.

        Raises Conflict (NOT_EMPTY) for any other content. _is_usable has checked the superblock.
        """
        descriptor = open_exclusively(device.path, "the disk", os.O_RDWR | os.O_DIRECT)
        try:
            if by := users_beside(device.path):
                raise in_use(device.path, "the disk", by)
            if not _ends_are_zero(descriptor, device.size_bytes):
                content = self._content(device).partition(" ")[0]
                if content not in ("", filesystem.type) or not self._is_torn(disk, filesystem):
                    raise self._not_empty(device)
                _zero_ends(descriptor, device.size_bytes)
            if self._content(device):
                raise self._not_empty(device)
            make_folder(self._proofs)
            _write_durably(self._proof(filesystem), disk.serial)
        finally:
            os.close(descriptor)

    def _is_torn(self, disk: Disk, filesystem: Filesystem) -> bool:
        """Tell whether an interrupted mkfs of zfsilo may have left the content of a disk."""
        proof = self._proof(filesystem)
        return exists(proof) and read_text(proof) == disk.serial

    def _proof(self, filesystem: Filesystem) -> str:
        _check_request(filesystem)
        return f"{self._proofs}/{filesystem.uuid}"

    def _make(self, device: Device, filesystem: Filesystem) -> None:
        argv = [word.format(uuid=filesystem.uuid) for word in MAKE[filesystem.type]]
        done = self._run([*argv, device.path], timeout_s=MAKE_TIMEOUT_S, ok=(0, 1))
        if done.rc == 0:
            return
        if "\nFilesystem must be larger than" in f"\n{done.stderr}":
            raise FailedPrecondition(
                f"the disk {device.path} has {device.size_bytes} bytes, too few for "
                f"{filesystem.type}; grow the volume to 300 MiB",
                reason="TOO_SMALL",
            )
        raise done.failed()

    # Growing

    def is_grown(self, disk: Disk, path: str) -> bool:
        device = self._disks.need(disk)
        mount = mountinfo.at(resolved(path), mountinfo.read())
        if mount is None or mount.number != device.number:
            return False
        if mount.readonly or device.readonly:
            return True  # it cannot grow now, and needs no space while it takes no writes
        if mount.type == "xfs":
            return _xfs_fills(path, device.size_bytes)
        present = read_superblock(device)
        return present is not None and present.fills(device.size_bytes)

    def grow(self, disk: Disk, path: str) -> None:
        device = self._disks.need(disk)
        mount = mountinfo.at(resolved(path), mountinfo.read())
        if mount is None or mount.number != device.number:
            raise FailedPrecondition(f"{device.path} is not mounted at {path}", path=path)
        xfs = mount.type == "xfs"
        argv = ["xfs_growfs", "-d", mount.path] if xfs else ["resize2fs", device.path]
        self._run(argv, timeout_s=GROW_TIMEOUT_S)


def read_superblock(device: Device) -> Superblock | None:
    """Return the superblock on a disk; None when it has none.

    Raises Unavailable (READ_ERROR) when the disk cannot be read.
    """
    try:
        with open(device.path, "rb", buffering=0) as file:
            return superblock.parse(file.read(superblock.BYTES))
    except OSError as error:
        raise _read_error(device.path, error) from error


def _check_request(filesystem: Filesystem) -> None:
    if filesystem.state != "FORMATTING":
        raise FailedPrecondition(
            f"the disk is not formatted: the server must record FORMATTING first, not "
            f"{filesystem.state}"
        )
    if filesystem.type not in MAKE or not is_uuid(filesystem.uuid):
        raise InvalidArgument(
            f"invalid filesystem {filesystem.type[:20]!r} with UUID {filesystem.uuid[:40]!r}; "
            f"use one of {', '.join(MAKE)}"
        )


def _is_empty(device: Device) -> bool:
    descriptor = open_exclusively(device.path, "the disk", os.O_RDONLY | os.O_DIRECT)
    try:
        return _ends_are_zero(descriptor, device.size_bytes)
    finally:
        os.close(descriptor)


def _ends(size_bytes: int) -> tuple[int, int]:
    return 0, max(size_bytes - MIB, 0)


def _ends_are_zero(descriptor: int, size_bytes: int) -> bool:
    """Tell whether the first and the last MiB are zeros, past the page cache: O_DIRECT, open(2).

    Every signature that libblkid knows is in one of them. Raises Unavailable when a part cannot
    be read.
    """
    with mmap.mmap(-1, MIB) as buffer:  # O_DIRECT needs memory that is aligned to a page
        for offset in _ends(size_bytes):
            try:
                count = os.preadv(descriptor, [buffer], offset)
            except OSError as error:
                raise _read_error(f"/proc/self/fd/{descriptor}", error) from error
            if count < min(MIB, size_bytes):
                raise Unavailable(f"only {count} bytes of the disk could be read at {offset}")
            if buffer[:count].strip(b"\0"):
                return False
    return True


def _zero_ends(descriptor: int, size_bytes: int) -> None:
    with mmap.mmap(-1, MIB) as zeros:
        for offset in _ends(size_bytes):
            os.pwritev(descriptor, [memoryview(zeros)[: min(MIB, size_bytes)]], offset)
    os.fsync(descriptor)


def _write_durably(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(os.path.dirname(path))


def _xfs_fills(path: str, device_bytes: int) -> bool:
    """Tell whether a mounted XFS is as large as its device allows: XFS_IOC_FSGEOMETRY_V1.

    The mounted filesystem is asked, since its superblock on disk may be out of date.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        geometry = bytearray(XFS_GEOMETRY_BYTES)
        fcntl.ioctl(descriptor, XFS_GEOMETRY, geometry)
    finally:
        os.close(descriptor)
    block_bytes, _, group_blocks = struct.unpack_from("=III", geometry)
    blocks = struct.unpack_from("=Q", geometry, 32)[0]
    spare = device_bytes // block_bytes - blocks
    full_groups = blocks % group_blocks == 0
    return bool(spare == 0 or (full_groups and 0 < spare < XFS_MIN_GROUP_BLOCKS))


def _read_error(path: str, error: OSError) -> Unavailable:
    return Unavailable(
        f"{os.path.realpath(path)} cannot be read: {error.strerror}",
        reason="READ_ERROR",
        device=path,
    )
