"""Mounts of the disks of iSCSI sessions: changed by mount(8) and umount(8), read from mountinfo.

A mount belongs to a volume when its device number is that of the disk of the volume's session. A
mount is dead when its device has no entry in /sys/dev/block any more, as after the end of a
session: its I/O fails, and it may be unmounted.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.host import mountinfo, mountpoints, processes
from zfsilod.host.block import read_superblock
from zfsilod.host.disks import SECTOR_BYTES, Device, Disks, check_serial, check_unused, read
from zfsilod.host.mountpoints import resolved
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from zfsilod.host.mountinfo import MountEntry
    from zfsilod.host.run import Runner
    from zfsilod.model.host_facts import Disk

MOUNT_TIMEOUT_S = 120  # includes the replay of a long journal
CHECK_TIMEOUT_S = 600
FSCK_UNCORRECTED = 4  # e2fsck(8): 1 and 2 are errors that it corrected
FAILED = 32  # exit code of mount(8) and umount(8)
FLAGS = frozenset({"noatime", "nodiratime", "nodev", "noexec", "nosuid"})
"""Options of the mount itself, which mountinfo always shows. It hides others that are defaults."""
# A write-protected disk cannot replay a journal, and a clone may have the UUID of its origin.
NO_REPLAY = {"ext4": ("noload",), "xfs": ("norecovery", "nouuid")}
NETWORK = "_netdev"  # systemd unmounts it before it stops the network: systemd.mount(5)


class RealMounts:
    """The mount points and the mounts of this host; see MountAdapter."""

    def __init__(self, run: Runner, disks: Disks) -> None:
        self._run = run
        self._disks = disks

    # Mount points

    def has_mountpoint(self, path: str, *, file: bool) -> bool:
        return mountpoints.has_mountpoint(path, file=file)

    def make_mountpoint(self, path: str, *, file: bool) -> None:
        mountpoints.make_mountpoint(path, file=file)

    def remove_mountpoint(self, path: str, *, file: bool) -> None:
        mountpoints.remove_mountpoint(path, file=file)

    # The staging mount

    def is_staged(self, disk: Disk, path: str, *, options: tuple[str, ...], readonly: bool) -> bool:
        mount = self._mount_of(disk, path)
        return mount is not None and _has_options(mount, options, readonly=readonly)

    def stage(
        self,
        disk: Disk,
        path: str,
        *,
        fs_type: str,
        options: tuple[str, ...],
        readonly: bool,
        untouched: bool,
    ) -> None:
        device = self._disks.need(disk)
        mount = self._clear_dead_mounts(device, path)
        settings = [*options, "ro" if readonly else "rw", NETWORK]
        if mount and not _has_options(mount, options, readonly=readonly):
            self._mount("-o", ",".join(["remount", *settings]), mount.path)
        if mount:
            return
        untouched = untouched or device.readonly
        self._check(device, fs_type, readonly=readonly, untouched=untouched)
        if untouched:
            settings += NO_REPLAY.get(fs_type, ())
        self._mount("-t", fs_type, "-o", ",".join(settings), str(device.path), resolved(path))

    def _check(self, device: Device, fs_type: str, *, readonly: bool, untouched: bool) -> None:
        """Check that a disk can be mounted, and run `e2fsck -p` on an ext4 that may be changed."""
        check_unused(device.path, "the disk")
        present = read_superblock(device)
        if present is None or present.type != fs_type:
            raise Conflict(
                f"the disk {device.path} has {present.type if present else 'no filesystem'}, "
                f"not {fs_type}",
                reason="OTHER_FILESYSTEM",
                device=str(device.path),
            )
        if device.readonly and not readonly:
            raise FailedPrecondition(
                f"the disk {device.path} is write-protected; stage the volume read-only",
                reason="WRITE_PROTECTED",
                device=str(device.path),
            )
        if fs_type != "ext4" or untouched:
            return  # mounting XFS replays its log and checks it
        argv = ["e2fsck", "-p", str(device.path)]
        done = self._run(argv, timeout_s=CHECK_TIMEOUT_S, ok=tuple(range(256)))
        if done.rc >= FSCK_UNCORRECTED:
            raise FailedPrecondition(
                f"the filesystem on {device.path} is damaged; run e2fsck on it "
                f"({done.stdout.strip()[-500:]})",
                reason="NEEDS_FSCK",
                device=str(device.path),
                exit_code=str(done.rc),
            )

    # Bind mounts

    def is_bound(self, disk: Disk, path: str, *, readonly: bool) -> bool:
        mount = self._mount_of(disk, path)
        return mount is not None and mount.readonly == readonly

    def bind(self, disk: Disk, source: str, path: str, *, readonly: bool) -> None:
        device = self._disks.need(disk)
        staged = mountinfo.at(resolved(source), mountinfo.read())
        if staged is None or staged.number != device.number:
            raise FailedPrecondition(
                f"the volume is not staged at {source}", reason="NOT_STAGED", path=source
            )
        mount = self._clear_dead_mounts(device, path)
        access = "ro" if readonly else "rw"
        if mount is None:
            self._mount("-o", f"bind,{access},{NETWORK}", staged.path, resolved(path))
        elif mount.readonly != readonly:
            self._mount("-o", f"remount,bind,{access}", mount.path)

    def unmount(self, disk: Disk, path: str) -> None:
        mountpoint = resolved(path)
        device = self._disks.find(disk.target)
        while mount := mountinfo.at(mountpoint, mountinfo.read()):
            if not self._is_dead(mount) and (device is None or mount.number != device.number):
                raise _foreign(mount)
            self._umount(mount)

    # Bind mounts of the device node, for raw block use

    def is_device_bound(self, disk: Disk, path: str) -> bool:
        mount = mountinfo.at(resolved(path), mountinfo.read())
        if mount is None:
            return False
        device = self._disks.find(disk.target)
        if device and mount.root == f"/{device.name}" and is_node_of(path, device):
            check_serial(device, disk)
            return True
        if _is_dead_node(mount):
            return device is None
        raise _foreign(mount)

    def bind_device(self, disk: Disk, path: str) -> None:
        device = self._disks.need(disk)
        mount = mountinfo.at(resolved(path), mountinfo.read())
        if mount and _is_dead_node(mount):
            self._umount(mount)
        elif mount:
            if self.is_device_bound(disk, path):
                return
        self._mount("-o", f"bind,{NETWORK}", str(device.path), resolved(path))

    def unbind_device(self, disk: Disk, path: str) -> None:
        mountpoint = resolved(path)
        device = self._disks.find(disk.target)
        while mount := mountinfo.at(mountpoint, mountinfo.read()):
            if not _is_dead_node(mount) and not (device and mount.root == f"/{device.name}"):
                raise _foreign(mount)
            self._umount(mount)

    # Mounts of either kind

    def is_mounted(self, disk: Disk, path: str) -> bool:
        mount = mountinfo.at(resolved(path), mountinfo.read())
        if mount and not self._belongs(disk, mount):
            raise _foreign(mount)
        return mount is not None

    def unmount_lazily(self, disk: Disk, path: str) -> None:
        mountpoint = resolved(path)
        while mount := mountinfo.at(mountpoint, mountinfo.read()):
            if not self._belongs(disk, mount):
                raise _foreign(mount)
            try:
                self._umount(mount)
            except Busy:
                self._run(["umount", "--lazy", mount.path], timeout_s=MOUNT_TIMEOUT_S)

    def _belongs(self, disk: Disk, mount: MountEntry) -> bool:
        device = self._disks.find(disk.target)
        if device and (mount.number == device.number or mount.root == f"/{device.name}"):
            return True
        return self._is_dead(mount) or _is_dead_node(mount)

    # For the daemon

    def stats(self, path: str) -> dict[str, int]:
        if mountinfo.at(resolved(path), mountinfo.read()) is None:
            raise FailedPrecondition(f"{path} is not mounted", reason="NOT_MOUNTED", path=path)
        node = Path(path).stat()
        if stat.S_ISBLK(node.st_mode):
            number = f"{os.major(node.st_rdev)}:{os.minor(node.st_rdev)}"
            sectors = int(read(self._disks.sys / "dev/block" / number / "size") or 0)
            return {"bytes_total": sectors * SECTOR_BYTES}
        fs = os.statvfs(path)
        total, free, available = (
            count * fs.f_frsize for count in (fs.f_blocks, fs.f_bfree, fs.f_bavail)
        )
        return {
            "bytes_total": total,
            "bytes_used": total - free,
            "bytes_available": available,
            "inodes_total": fs.f_files,
            "inodes_used": fs.f_files - fs.f_ffree,
            "inodes_available": fs.f_favail,
        }

    def problem(self, path: str, *, readonly: bool) -> str:
        mount = mountinfo.at(resolved(path), mountinfo.read())
        if mount is None:
            return f"nothing is mounted at {path}"
        if self._is_dead(mount):
            return f"the disk that is mounted at {path} has disappeared"
        if mount.stopped and not readonly:
            return f"the filesystem at {path} became read-only after an error"
        return ""

    # The mount at a path

    def _mount_of(self, disk: Disk, path: str) -> MountEntry | None:
        """Return the mount of a volume at a path; None when nothing is mounted.

        A dead mount counts while the volume has no other disk. Raises Conflict (OTHER_MOUNT) for
        another mount.
        """
        mount = mountinfo.at(resolved(path), mountinfo.read())
        if mount is None:
            return None
        device = self._disks.find(disk.target)
        if device and mount.number == device.number:
            check_serial(device, disk)
            return mount
        if self._is_dead(mount):
            return mount if device is None else None
        raise _foreign(mount)

    def _clear_dead_mounts(self, device: Device, path: str) -> MountEntry | None:
        """Unmount the dead mounts on top of a path, and return the mount of the device, if any."""
        mountpoint = resolved(path)
        while mount := mountinfo.at(mountpoint, mountinfo.read()):
            if mount.number == device.number:
                return mount
            if not self._is_dead(mount):
                raise _foreign(mount)
            self._umount(mount)
        return None

    def _is_dead(self, mount: MountEntry) -> bool:
        """Tell whether the block device of a mount has disappeared; major 0 is not a device."""
        on_disk = not mount.number.startswith("0:")
        return on_disk and not (self._disks.sys / "dev/block" / mount.number).exists()

    def _mount(self, *args: str) -> None:
        done = self._run(["mount", *args], timeout_s=MOUNT_TIMEOUT_S, ok=(0, FAILED))
        if done.rc == 0:
            return
        if "Unknown parameter" in done.stderr or "bad option" in done.stderr:
            done.failed()
            raise InvalidArgument(
                f"the kernel refused the mount options: {done.stderr.strip()[:500]}",
                reason="BAD_MOUNT_OPTION",
            )
        raise done.failed()

    def _umount(self, mount: MountEntry) -> None:
        done = self._run(["umount", mount.path], timeout_s=MOUNT_TIMEOUT_S, ok=(0, FAILED))
        if done.rc == 0:
            return
        if "target is busy" not in done.stderr:
            raise done.failed()
        if self._is_dead(mount) or _is_dead_node(mount):  # its users have lost the disk already
            self._run(["umount", "--lazy", mount.path], timeout_s=MOUNT_TIMEOUT_S)
            return
        children = [child.path for child in mountinfo.read() if child.parent == mount.id]
        names = children + processes.using(mount.path)
        by = f" by {', '.join(names)}" if names else ""
        raise Busy(
            f"{mount.path} is in use{by}",
            reason="MOUNT_BUSY",
            path=mount.path,
            users=", ".join(names),
        )


def _has_options(mount: MountEntry, options: tuple[str, ...], *, readonly: bool) -> bool:
    return mount.readonly == readonly and mount.options >= FLAGS.intersection(options)


def is_node_of(path: str, device: Device) -> bool:
    """Tell whether a path is a node of a device: stat(2), st_rdev."""
    number = Path(path).stat().st_rdev
    return f"{os.major(number)}:{os.minor(number)}" == device.number


def _is_dead_node(mount: MountEntry) -> bool:
    """Tell whether a bind mount shows a device node that was removed with its disk."""
    return mount.type == "devtmpfs" and mount.root.endswith(mountinfo.DELETED)


def _foreign(mount: MountEntry) -> Conflict:
    return Conflict(
        f"something else is mounted at {mount.path}: {mount.source} ({mount.type})",
        reason="OTHER_MOUNT",
        path=mount.path,
        source=mount.source,
    )
