"""Mounts of the disks of sessions: mount(8) and umount(8) change them, mountinfo tells.

A mount is ours when its device is the disk of our session. When the disk is gone, so is its entry
in sysfs; what is still mounted then is dead, can be of use to nobody, and is ours to unmount.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.host import mountinfo, mountpoints, processes
from zfsilod.host.block import read_superblock
from zfsilod.host.disks import SECTOR_BYTES, Device, Disks, check_serial, claim, read
from zfsilod.host.mountpoints import resolved
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from zfsilod.host.mountinfo import Mount
    from zfsilod.host.run import Runner
    from zfsilod.model.host_facts import Disk

MOUNT_TIMEOUT_S = 120  # a long journal is replayed in it
CHECK_TIMEOUT_S = 600
FSCK_REFUSES = 4  # e2fsck(8): 1 and 2 are errors that it corrected
FAILED = 32  # mount(8), umount(8)
FLAGS = frozenset({"noatime", "nodiratime", "nodev", "noexec", "nosuid"})
"""Options of the mount itself, which mountinfo always shows; others may be defaults, and hidden."""
# On a write-protected disk no journal can be replayed, and a clone's UUID may be its origin's.
NO_REPLAY = {"ext4": ("noload",), "xfs": ("norecovery", "nouuid")}
NETWORK = "_netdev"  # systemd ends these mounts before the network: systemd.mount(5)


class RealMounts:
    """Mount points and mounts of this host."""

    def __init__(self, run: Runner, disks: Disks) -> None:
        self._run = run
        self._disks = disks

    # Mount points

    def has_point(self, path: str, *, file: bool) -> bool:
        return mountpoints.has_point(path, file=file)

    def make_point(self, path: str, *, file: bool) -> None:
        mountpoints.make_point(path, file=file)

    def remove_point(self, path: str, *, file: bool) -> None:
        mountpoints.remove_point(path, file=file)

    # The staging path

    def is_staged(self, disk: Disk, path: str, *, options: tuple[str, ...], readonly: bool) -> bool:
        mount = self._ours(disk, path)
        return mount is not None and _is_as_wished(mount, options, readonly=readonly)

    def stage(
        self, disk: Disk, path: str, *, fs_type: str, options: tuple[str, ...], readonly: bool,
        untouched: bool,
    ) -> None:  # fmt: skip
        device = self._disks.need(disk)
        mount = self._cleared(device, path)
        words = [*options, "ro" if readonly else "rw", NETWORK]
        if mount and not _is_as_wished(mount, options, readonly=readonly):
            self._mount("-o", ",".join(["remount", *words]), mount.path)
        if mount:
            return
        untouched = untouched or device.readonly
        self._check(device, fs_type, readonly=readonly, untouched=untouched)
        if untouched:
            words += NO_REPLAY.get(fs_type, ())
        self._mount("-t", fs_type, "-o", ",".join(words), str(device.path), resolved(path))

    def _check(self, device: Device, fs_type: str, *, readonly: bool, untouched: bool) -> None:
        """Make sure that a disk can be mounted, before anything is tried."""
        claim(device.path, "the disk")
        found = read_superblock(device)
        if found is None or found.type != fs_type:
            raise Conflict(
                f"the disk {device.path} has {found.type if found else 'no filesystem'}, "
                f"not {fs_type}",
                reason="OTHER_FILESYSTEM", device=str(device.path),
            )  # fmt: skip
        if device.readonly and not readonly:
            raise FailedPrecondition(
                f"the disk {device.path} is write-protected: stage it read-only",
                reason="WRITE_PROTECTED", device=str(device.path),
            )  # fmt: skip
        if fs_type != "ext4" or untouched:
            return  # XFS replays its log and checks itself when it is mounted
        argv = ["e2fsck", "-p", str(device.path)]
        done = self._run(argv, timeout_s=CHECK_TIMEOUT_S, ok=tuple(range(256)))
        if done.rc >= FSCK_REFUSES:
            raise FailedPrecondition(
                f"the filesystem on {device.path} is damaged: run e2fsck on it by hand "
                f"({done.stdout.strip()[-500:]})",
                reason="NEEDS_FSCK", device=str(device.path), exit_code=str(done.rc),
            )  # fmt: skip

    # Bind mounts of it

    def is_bound(self, disk: Disk, path: str, *, readonly: bool) -> bool:
        mount = self._ours(disk, path)
        return mount is not None and mount.readonly == readonly

    def bind(self, disk: Disk, source: str, path: str, *, readonly: bool) -> None:
        device = self._disks.need(disk)
        staged = mountinfo.at(resolved(source), mountinfo.read())
        if staged is None or staged.number != device.number:
            raise FailedPrecondition(
                f"{source} is not where the volume is staged", reason="NOT_STAGED", path=source
            )
        mount = self._cleared(device, path)
        access = "ro" if readonly else "rw"
        if mount is None:
            self._mount("-o", f"bind,{access},{NETWORK}", staged.path, resolved(path))
        elif mount.readonly != readonly:
            self._mount("-o", f"remount,bind,{access}", mount.path)

    def unmount(self, disk: Disk, path: str) -> None:
        here = resolved(path)
        device = self._disks.find(disk.target)
        while mount := mountinfo.at(here, mountinfo.read()):
            if not self._is_dead(mount) and (device is None or mount.number != device.number):
                raise _foreign(mount)
            self._umount(mount)

    # The device itself, for raw use

    def is_device_bound(self, disk: Disk, path: str) -> bool:
        mount = mountinfo.at(resolved(path), mountinfo.read())
        if mount is None:
            return False
        device = self._disks.find(disk.target)
        if device and mount.root == f"/{device.name}" and _is_node(path, device):
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
        here = resolved(path)
        device = self._disks.find(disk.target)
        while mount := mountinfo.at(here, mountinfo.read()):
            if not _is_dead_node(mount) and not (device and mount.root == f"/{device.name}"):
                raise _foreign(mount)
            self._umount(mount)

    # Either, whatever became of the disk

    def is_attached(self, disk: Disk, path: str) -> bool:
        mount = mountinfo.at(resolved(path), mountinfo.read())
        if mount and not self._belongs(disk, mount):
            raise _foreign(mount)
        return mount is not None

    def detach(self, disk: Disk, path: str) -> None:
        here = resolved(path)
        while mount := mountinfo.at(here, mountinfo.read()):
            if not self._belongs(disk, mount):
                raise _foreign(mount)
            try:
                self._umount(mount)
            except Busy:
                self._run(["umount", "--lazy", mount.path], timeout_s=MOUNT_TIMEOUT_S)

    def _belongs(self, disk: Disk, mount: Mount) -> bool:
        device = self._disks.find(disk.target)
        if device and (mount.number == device.number or mount.root == f"/{device.name}"):
            return True
        return self._is_dead(mount) or _is_dead_node(mount)

    # Reading, for the daemon

    def stats(self, path: str) -> dict[str, int]:
        """Return bytes and inodes of what is mounted; of a raw device only its size."""
        if mountinfo.at(resolved(path), mountinfo.read()) is None:
            raise FailedPrecondition(f"{path} is not mounted", reason="NOT_MOUNTED", path=path)
        node = Path(path).stat()
        if stat.S_ISBLK(node.st_mode):
            number = f"{os.major(node.st_rdev)}:{os.minor(node.st_rdev)}"
            sectors = int(read(self._disks.sys / "dev/block" / number / "size") or 0)
            return {"bytes_total": sectors * SECTOR_BYTES}
        found = os.statvfs(path)
        total, free, available = (
            count * found.f_frsize for count in (found.f_blocks, found.f_bfree, found.f_bavail)
        )
        return {
            "bytes_total": total, "bytes_used": total - free, "bytes_available": available,
            "inodes_total": found.f_files, "inodes_used": found.f_files - found.f_ffree,
            "inodes_available": found.f_favail,
        }  # fmt: skip

    def problem(self, path: str, *, readonly: bool) -> str:
        mount = mountinfo.at(resolved(path), mountinfo.read())
        if mount is None:
            return f"nothing is mounted at {path}"
        if self._is_dead(mount):
            return f"the disk that is mounted at {path} is gone"
        if mount.stopped and not readonly:
            return f"the filesystem at {path} turned read-only after an error"
        return ""

    # What is mounted there, and by whom

    def _ours(self, disk: Disk, path: str) -> Mount | None:
        """Return our mount at a path. A dead one counts as ours while there is no new disk."""
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

    def _cleared(self, device: Device, path: str) -> Mount | None:
        """Return what of ours is mounted there already, after dead mounts were taken away."""
        here = resolved(path)
        while mount := mountinfo.at(here, mountinfo.read()):
            if mount.number == device.number:
                return mount
            if not self._is_dead(mount):
                raise _foreign(mount)
            self._umount(mount)
        return None

    def _is_dead(self, mount: Mount) -> bool:
        """Tell whether a mount's block device is gone; major number 0 never had one."""
        on_disk = not mount.number.startswith("0:")
        return on_disk and not (self._disks.sys / "dev/block" / mount.number).exists()

    def _mount(self, *words: str) -> None:
        done = self._run(["mount", *words], timeout_s=MOUNT_TIMEOUT_S, ok=(0, FAILED))
        if done.rc == 0:
            return
        if "Unknown parameter" in done.stderr or "bad option" in done.stderr:
            done.failed()
            raise InvalidArgument(
                f"the kernel did not accept the mount: {done.stderr.strip()[:500]}",
                reason="BAD_MOUNT_OPTION",
            )
        raise done.failed()

    def _umount(self, mount: Mount) -> None:
        done = self._run(["umount", mount.path], timeout_s=MOUNT_TIMEOUT_S, ok=(0, FAILED))
        if done.rc == 0:
            return
        if "target is busy" not in done.stderr:
            raise done.failed()
        if self._is_dead(mount) or _is_dead_node(mount):  # who is at work there has lost it anyhow
            self._run(["umount", "--lazy", mount.path], timeout_s=MOUNT_TIMEOUT_S)
            return
        below = [each.path for each in mountinfo.read() if each.parent == mount.id]
        names = below + processes.using(mount.path)
        by = f" by {', '.join(names)}" if names else ""
        raise Busy(
            f"{mount.path} is in use{by}", reason="MOUNT_BUSY",
            path=mount.path, users=", ".join(names),
        )  # fmt: skip


def _is_as_wished(mount: Mount, options: tuple[str, ...], *, readonly: bool) -> bool:
    return mount.readonly == readonly and mount.options >= FLAGS.intersection(options)


def _is_node(path: str, device: Device) -> bool:
    number = Path(path).stat().st_rdev
    return f"{os.major(number)}:{os.minor(number)}" == device.number


def _is_dead_node(mount: Mount) -> bool:
    """Tell whether a bind mount shows a device node that was removed with its disk."""
    return mount.type == "devtmpfs" and mount.root.endswith(mountinfo.DELETED)


def _foreign(mount: Mount) -> Conflict:
    return Conflict(
        f"something else is mounted at {mount.path}: {mount.source} ({mount.type})",
        reason="OTHER_MOUNT", path=mount.path, source=mount.source,
    )  # fmt: skip
