"""Mounts of the disks of iSCSI sessions: changed by descriptor, read from mountinfo.

A mount belongs to a volume when its device number is that of the disk of the volume's session. A
mount is dead when its device has no entry in /sys/dev/block any more, as after the end of a
session: its I/O fails, and it may be unmounted.
"""

from __future__ import annotations

import errno
import os
import stat

from zfsilod.host import filesystem_health, mountinfo, mountpoints, processes
from zfsilod.host.attributes import read
from zfsilod.host.block import read_superblock
from zfsilod.host.device import SECTOR_BYTES, Device
from zfsilod.host.disks import Disks, check_serial, check_unused
from zfsilod.host.mount_calls import NETWORK, MountCalls, open_node, open_root
from zfsilod.host.places import ANYWHERE, Place, located, needed, resolved
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, Unavailable, ZfsiloError, show
from zfsilod.model.lean import TYPE_CHECKING, contextmanager
from zfsilod.storage.paths import exists

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host.mountinfo import MountEntry
    from zfsilod.host.run import Runner
    from zfsilod.model.host_facts import Disk

CHECK_TIMEOUT_S = 600
FSCK_UNCORRECTED = 4  # e2fsck(8): 1 and 2 are errors that it corrected
FLAGS = frozenset({"noatime", "nodiratime", "nodev", "noexec", "nosuid"})
"""Options of the mount itself, which mountinfo always shows. It hides others that are defaults."""
# A write-protected disk cannot replay a journal, and a clone may have the UUID of its origin.
NO_REPLAY = {"ext4": ("noload",), "xfs": ("norecovery", "nouuid")}


class RealMounts:
    """The mount points and the mounts of this host; see MountAdapter."""

    def __init__(self, run: Runner, disks: Disks) -> None:
        self._run = run
        self._disks = disks
        self._calls = MountCalls(run)

    # Mount points

    def has_mountpoint(self, path: str, *, file: bool, root: str = "") -> bool:
        return mountpoints.has_mountpoint(path, file=file, root=root)

    def make_mountpoint(self, path: str, *, file: bool, root: str = "") -> None:
        mountpoints.make_mountpoint(path, file=file, root=root)

    def remove_mountpoint(self, path: str, *, file: bool, root: str = "") -> None:
        mountpoints.remove_mountpoint(path, file=file, root=root)

    # The staging mount

    def is_staged(
        self, disk: Disk, path: str, *, options: tuple[str, ...], readonly: bool, root: str = ""
    ) -> bool:
        mount = self._mount_of(disk, path, root)
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
        root: str = "",
    ) -> None:
        device = self._disks.need(disk)
        settings = [*options, "ro" if readonly else "rw", NETWORK]
        with needed(path, root) as place:
            mount = self._clear_dead_mounts(device, place)
            if mount and not _has_options(mount, options, readonly=readonly):
                self._calls.remount(place, device, settings)
            if mount:
                return
            untouched = untouched or device.readonly
            self._check(device, fs_type, readonly=readonly, untouched=untouched)
            if untouched:
                settings += NO_REPLAY.get(fs_type, ())
            self._calls.mount(place, device, fs_type, settings)

    def _check(self, device: Device, fs_type: str, *, readonly: bool, untouched: bool) -> None:
        """Check that a disk can be mounted; run `e2fsck -p` on a used ext4 that may be changed."""
        check_unused(device.path, "the disk")
        present = read_superblock(device)
        if present is None or present.type != fs_type:
            raise Conflict(
                f"the disk {device.path} has {present.type if present else 'no filesystem'}, "
                f"not {fs_type}",
                reason="OTHER_FILESYSTEM",
                device=device.path,
            )
        if device.readonly and not readonly:
            raise FailedPrecondition(
                f"the disk {device.path} is write-protected; stage the volume read-only",
                reason="WRITE_PROTECTED",
                device=device.path,
            )
        if fs_type != "ext4" or untouched:
            return  # mounting XFS replays its log and checks it
        if present.never_used and present.clean:
            return  # it is as mkfs made it: e2fsck would only find the state that was read here
        argv = ["e2fsck", "-p", device.path]
        done = self._run(argv, timeout_s=CHECK_TIMEOUT_S, ok=tuple(range(256)))
        if done.rc >= FSCK_UNCORRECTED:
            raise FailedPrecondition(
                f"the filesystem on {device.path} is damaged; run e2fsck on it "
                f"({done.stdout.strip()[-500:]})",
                reason="NEEDS_FSCK",
                device=device.path,
                exit_code=str(done.rc),
            )

    # Filesystems that failed while they were mounted

    def has_working_filesystem(
        self, disk: Disk, path: str, *, readonly: bool, root: str = ""
    ) -> bool:
        return not self._failure(disk, path, readonly=readonly, root=root)

    def _failure(self, disk: Disk, path: str, *, readonly: bool, root: str) -> str:
        mount = mountinfo.at(located(path, root), mountinfo.read())
        device = self._disks.find(disk.target)
        if mount is None or device is None:
            return ""  # a fact of the staging mount
        if mount.number != device.number:
            return "lost its disk" if self._is_dead(mount) else ""
        self._disks.need(disk)  # not touched while its session is lost
        return filesystem_health.failure(mount, device, self._disks.sys, readonly=readonly)

    def unmount_failed(self, disk: Disk, paths: tuple[tuple[str, str], ...]) -> None:
        device = self._disks.need(disk)
        mounts = mountinfo.read()
        own = {located(path, root) for path, root in paths}
        # The users of a dead mount have lost the disk already. XFS refuses a second mount of the
        # filesystem as long as one of them stays.
        dead = {mount.path for mount in mounts if mount.path in own and self._is_dead(mount)}
        shown = [mount for mount in mounts if mount.number == device.number]
        users = [mount.path for mount in shown if mount.path not in own]
        for path in own - dead:
            users += [name for name in processes.using(path) if name not in users]
        below = {mount.id: mount.number for mount in mounts}
        ours = {mount.path: below.get(mount.parent, "") for mount in shown}
        users += processes.mounting(device.number, ours)
        if users:
            raise Busy(
                f"the filesystem at {paths[0][0]} failed and is in use by {', '.join(users)}: end "
                "that use, and zfsilo checks the filesystem and mounts it again",
                reason="FILESYSTEM_FAILS",
                path=paths[0][0],
                users=", ".join(users),
            )
        for path, root in reversed(paths):
            if mountinfo.at(located(path, root), mountinfo.read()):
                self.unmount(disk, path, root=root)

    # Bind mounts

    def is_bound(self, disk: Disk, path: str, *, readonly: bool, root: str = "") -> bool:
        mount = self._mount_of(disk, path, root)
        return mount is not None and mount.readonly == readonly

    def bind(
        self,
        disk: Disk,
        source: str,
        path: str,
        *,
        readonly: bool,
        root: str = "",
        source_root: str = "",
    ) -> None:
        device = self._disks.need(disk)
        staged = mountinfo.at(located(source, source_root), mountinfo.read())
        if staged is None or staged.number != device.number:
            raise _not_staged(source)
        with needed(path, root) as place, open_root(staged) as top:
            mount = self._clear_dead_mounts(device, place)
            if mount is None:
                self._calls.add_bind(top, staged.path, place, readonly=readonly)
            elif mount.readonly != readonly:
                self._calls.set_access(place, readonly=readonly)

    def unmount(self, disk: Disk, path: str, *, root: str = "") -> None:
        device = self._disks.find(disk.target)
        with self._hurried(disk.target):
            for mount in _mounts_at(path, root):
                if not self._is_dead(mount) and (device is None or mount.number != device.number):
                    raise _foreign(mount)
                self._umount(mount)

    # Bind mounts of the device node, for raw block use

    def is_device_bound(self, disk: Disk, path: str, *, root: str = "") -> bool:
        mount = mountinfo.at(located(path, root), mountinfo.read())
        if mount is None:
            return False
        device = self._disks.find(disk.target)
        if device and _shows_node(mount, device) and is_node_of(mount.path, device):
            check_serial(device, disk)
            return True
        if _is_dead_node(mount):
            return device is None
        raise _foreign(mount)

    def bind_device(self, disk: Disk, path: str, *, root: str = "") -> None:
        device = self._disks.need(disk)
        with needed(path, root) as place:
            mount = mountinfo.at(place.path, mountinfo.read())
            if mount and _is_dead_node(mount):
                self._umount(mount)
            elif mount and self.is_device_bound(disk, path, root=root):
                return
            with open_node(device) as node:
                self._calls.add_bind(node, device.path, place, readonly=False)

    def unbind_device(self, disk: Disk, path: str, *, root: str = "") -> None:
        device = self._disks.find(disk.target)
        for mount in _mounts_at(path, root):
            if not _is_dead_node(mount) and not (device and _shows_node(mount, device)):
                raise _foreign(mount)
            self._umount(mount)

    # Mounts of either kind

    def is_mounted(self, disk: Disk, path: str, *, root: str = "") -> bool:
        mount = mountinfo.at(located(path, root), mountinfo.read())
        if mount and not self._belongs(disk, mount):
            raise _foreign(mount)
        return mount is not None

    def unmount_lazily(self, disk: Disk, path: str, *, root: str = "") -> None:
        with self._hurried(disk.target):
            for mount in _mounts_at(path, root):
                if not self._belongs(disk, mount):
                    raise _foreign(mount)
                try:
                    self._umount(mount)
                except Busy:
                    self._umount(mount, lazy=True)

    def _belongs(self, disk: Disk, mount: MountEntry) -> bool:
        device = self._disks.find(disk.target)
        if device and (mount.number == device.number or _shows_node(mount, device)):
            return True
        return self._is_dead(mount) or _is_dead_node(mount)

    def processes(self, path: str) -> list[str]:
        return processes.using(path)

    # For the daemon

    def stats(self, path: str) -> dict[str, int]:
        if mountinfo.at(resolved(path), mountinfo.read()) is None:
            raise FailedPrecondition(f"{path} is not mounted", reason="NOT_MOUNTED", path=path)
        node = os.stat(path)
        if stat.S_ISBLK(node.st_mode):
            number = f"{os.major(node.st_rdev)}:{os.minor(node.st_rdev)}"
            sectors = int(read(f"{self._disks.sys}/dev/block/{number}/size") or 0)
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

    def problem(self, path: str, *, readonly: bool) -> ZfsiloError | None:
        return self._problem(
            path, mountinfo.at(resolved(path), mountinfo.read()), readonly=readonly
        )

    def problems(self, paths: dict[str, bool]) -> dict[str, str]:
        topmost = {mount.path: mount for mount in mountinfo.read()} if paths else {}
        named = {
            path: self._problem(path, topmost.get(path), readonly=readonly)
            for path, readonly in paths.items()
        }
        return {path: problem.message for path, problem in named.items() if problem}

    def _problem(
        self, path: str, mount: MountEntry | None, *, readonly: bool
    ) -> ZfsiloError | None:
        if mount is None:
            return Unavailable(f"nothing is mounted at {path}", reason="NOT_MOUNTED")
        if self._is_dead(mount):
            message = f"the disk that is mounted at {path} has disappeared"
            return Unavailable(message, reason="SESSION_LOST")
        name = os.path.basename(os.path.realpath(f"{self._disks.sys}/dev/block/{mount.number}"))
        recorded = filesystem_health.recorded_failure(
            mount, self._disks.sys, name, readonly=readonly
        )
        if not recorded:
            return None
        reason = "FILESYSTEM_FAILS" if mount.stopped and not readonly else "FILESYSTEM_ERRORS"
        return Unavailable(f"the filesystem at {path} {recorded}", reason=reason)

    @contextmanager
    def _hurried(self, target: str) -> Iterator[None]:
        """Let I/O fail soon when the session, or every path, is lost meanwhile."""
        joined = self._disks.joined(target)
        with self._disks.hurried(target):
            if joined is None:
                yield
                return
            from zfsilod.host.multipath import Multipath  # where multipathd runs

            with Multipath(self._run, self._disks).without_queueing(joined):
                yield

    # The mount at a path

    def _mount_of(self, disk: Disk, path: str, root: str) -> MountEntry | None:
        """Return the mount of a volume at a path; None when nothing is mounted.

        A dead mount counts while the volume has no other disk. Raises Conflict (OTHER_MOUNT) for
        another mount.
        """
        mount = mountinfo.at(located(path, root), mountinfo.read())
        if mount is None:
            return None
        device = self._disks.find(disk.target)
        if device and mount.number == device.number:
            check_serial(device, disk)
            return mount
        if self._is_dead(mount):
            return mount if device is None else None
        raise _foreign(mount)

    def _clear_dead_mounts(self, device: Device, place: Place) -> MountEntry | None:
        """Unmount the dead mounts on top of a place, and return the mount of the device, if any."""
        for mount in _mounts_at(place.path, ANYWHERE):
            if mount.number == device.number:
                return mount
            if not self._is_dead(mount):
                raise _foreign(mount)
            self._umount(mount)
        return None

    def _is_dead(self, mount: MountEntry) -> bool:
        """Tell whether the block device of a mount has disappeared; major 0 is not a device."""
        on_disk = not mount.number.startswith("0:")
        return on_disk and not exists(f"{self._disks.sys}/dev/block/{mount.number}")

    def _umount(self, mount: MountEntry, *, lazy: bool = False) -> None:
        with needed(mount.path, ANYWHERE) as place:
            done = self._calls.unmount(place, lazy=lazy)
        if done.rc == 0:
            return
        if done.rc != errno.EBUSY or lazy:
            raise done.failed()
        if self._is_dead(mount) or _is_dead_node(mount):  # its users have lost the disk already
            self._umount(mount, lazy=True)
            return
        children = [show(child.path) for child in mountinfo.read() if child.parent == mount.id]
        names = children + processes.using(mount.path)
        by = f" by {', '.join(names)}" if names else ""
        raise Busy(
            f"{mount.path} is in use{by}",
            reason="MOUNT_BUSY",
            path=mount.path,
            users=", ".join(names),
        )


def _mounts_at(path: str, root: str) -> Iterator[MountEntry]:
    """Yield the topmost mount at a path until it has none; the caller removes each."""
    where = located(path, root)
    while mount := mountinfo.at(where, mountinfo.read()):
        yield mount


def _not_staged(path: str) -> FailedPrecondition:
    return FailedPrecondition(f"the volume is not staged at {path}", reason="NOT_STAGED", path=path)


def _has_options(mount: MountEntry, options: tuple[str, ...], *, readonly: bool) -> bool:
    return mount.readonly == readonly and mount.options >= FLAGS.intersection(options)


def is_node_of(path: str, device: Device) -> bool:
    """Tell whether a path is a node of a device: stat(2), st_rdev."""
    number = os.stat(path).st_rdev
    return f"{os.major(number)}:{os.minor(number)}" == device.number


def _shows_node(mount: MountEntry, device: Device) -> bool:
    """Tell whether a bind mount shows the node of a device: of devtmpfs, not a file of its name."""
    return mount.type == "devtmpfs" and mount.root == f"/{device.name}"


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
