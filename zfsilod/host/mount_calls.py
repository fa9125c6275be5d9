"""Mounts and unmounts by descriptor, so that no component of a path is resolved a second time.

A filesystem is mounted by mount(8) on /proc/self/fd/N. Bind mounts and unmounts are system calls,
which umount(8) and mount(8) cannot be made to do without following a link at the last component;
they are made in a process of their own that Runner ends like a tool. mount(8) and umount(8) with
--fake keep /run/mount/utab, where systemd finds _netdev.
"""

from __future__ import annotations

import os
import struct

from zfsilod.host import mountinfo
from zfsilod.host.places import ANYWHERE, Place, mount_of, needed, opened, unusable
from zfsilod.model.errors import Conflict, InvalidArgument, ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING, contextmanager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from zfsilod.host.device import Device
    from zfsilod.host.mountinfo import MountEntry
    from zfsilod.host.run import Completed, Runner

MOUNT_TIMEOUT_S = 120  # includes the replay of a long journal
TABLE_TIMEOUT_S = 30
CHANGED = 255  # exit code of a call: the place is not where it was
ANY = tuple(range(256))
FAILED = 32  # exit code of mount(8) and umount(8)
NETWORK = "_netdev"  # systemd unmounts it before it stops the network: systemd.mount(5)

# linux/mount.h, and asm-generic/unistd.h: the same numbers on every architecture of Debian
MNT_DETACH, UMOUNT_NOFOLLOW = 0x2, 0x8
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
OPEN_TREE_CLONE = 0x1
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
AT_EMPTY_PATH = 0x1000
MOUNT_ATTR_RDONLY = 0x1


class MountCalls:
    """Changes mounts at places (host/places.py)."""

    def __init__(self, run: Runner) -> None:
        self._run = run

    def mount(self, place: Place, device: Device, fs_type: str, options: list[str]) -> None:
        """Mount the filesystem of a device. Raises Conflict when the place was swapped."""
        before = frozenset(mount.id for mount in mountinfo.read())
        arguments = ("-t", fs_type, "-o", ",".join(options), device.path)
        with self._registered(place, arguments), place.entered() as target:
            self._mount(*arguments, descriptor=target)
            self.check_mounted(place, device, before)

    def check_mounted(self, place: Place, device: Device, before: frozenset[str]) -> None:
        """Check that a new mount is at its place; otherwise remove it and raise Conflict."""
        with place.entered() as top:
            mount = mount_of(top)
        if mount and mount.id not in before and mount.path == place.path:
            return
        for stray in mountinfo.read():
            if stray.id not in before and stray.source == device.path:
                with opened(stray.path, "/") as at:
                    if at is not None:
                        self.unmount(at)
        raise _swapped(place.path)

    def remount(self, place: Place, device: Device, options: list[str]) -> None:
        """Change the options of a mount and of its filesystem."""
        with place.entered() as target:
            settings = ",".join(["remount", *options])
            self._mount("-o", settings, device.path, descriptor=target)

    def add_bind(self, source: int, name: str, place: Place, *, readonly: bool) -> None:
        """Bind an open file or directory; `name`: its path, for the log and for utab."""
        arguments = ("-o", f"bind,{'ro' if readonly else 'rw'},{NETWORK}", name)
        with self._registered(place, arguments), place.entered() as target:
            self._call(
                lambda: _bind(source, target, place.path, readonly=readonly),
                f"mount {' '.join(arguments)} {place.path}",
            )

    def set_access(self, place: Place, *, readonly: bool) -> None:
        """Make a bind mount read-only or writable; its filesystem stays as it is."""
        access = "ro" if readonly else "rw"
        with place.entered() as target:
            self._call(
                lambda: _set_access(target, readonly=readonly),
                f"mount -o remount,bind,{access} {place.path}",
            )

    def unmount(self, place: Place, *, lazy: bool = False) -> Completed:
        """Remove the topmost mount at a place, without following a link there."""
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
        command = f"umount {'--lazy ' if lazy else ''}{place.path}"
        done = self._run.call(
            lambda: _unmount(place.folder, place.name, flags), command, timeout_s=MOUNT_TIMEOUT_S
        )
        if done.rc == 0:
            self._run(["umount", "--fake", "-c", place.path], timeout_s=TABLE_TIMEOUT_S, ok=ANY)
        return done

    @contextmanager
    def _registered(self, place: Place, arguments: tuple[str, ...]) -> Iterator[None]:
        """Write a mount to utab before systemd sees it, and remove it when the mount fails."""
        argv = ["mount", "--fake", "-c", *arguments, place.path]
        self._run(argv, timeout_s=TABLE_TIMEOUT_S)
        try:
            yield
        except ZfsiloError:
            self._run(["umount", "--fake", "-c", place.path], timeout_s=TABLE_TIMEOUT_S, ok=ANY)
            raise

    def _call(self, call: Callable[[], None], command: str) -> None:
        done = self._run.call(call, command, timeout_s=MOUNT_TIMEOUT_S)
        if done.rc == CHANGED:
            raise _swapped(command.rpartition(" ")[2])
        if done.rc:
            raise done.failed()

    def _mount(self, *arguments: str, descriptor: int) -> None:
        done = self._run(
            # "/.": newer versions of mount(8) do not follow a link at the last component
            ["mount", "-n", "-c", *arguments, f"/proc/self/fd/{descriptor}/."],
            timeout_s=MOUNT_TIMEOUT_S,
            ok=(0, FAILED),
            inherit=(descriptor,),
        )
        if done.rc == 0:
            return
        if "Unknown parameter" in done.stderr or "bad option" in done.stderr:
            done.failed()
            raise InvalidArgument(
                f"the kernel refused the mount options: {done.stderr.strip()[:500]}",
                reason="BAD_MOUNT_OPTION",
            )
        raise done.failed()


# The sources of bind mounts


@contextmanager
def open_node(device: Device) -> Iterator[int]:
    """Open the node of a device for a bind mount, without using the device."""
    node = os.open(device.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        number = os.fstat(node).st_rdev
        if f"{os.major(number)}:{os.minor(number)}" != device.number:
            raise Conflict(f"{device.path} is not the node of device {device.number}")
        yield node
    finally:
        os.close(node)


@contextmanager
def open_root(mount: MountEntry) -> Iterator[int]:
    """Open the root of a mount; another mount that has taken its path is refused."""
    with needed(mount.path, ANYWHERE) as place, place.entered() as top:
        present = mount_of(top)
        if present is None or present.id != mount.id:
            raise unusable(mount.path, "is not the staging mount any more")
        yield top


# The calls, each in a process of its own


def _unmount(folder: int, name: str, flags: int) -> None:
    os.fchdir(folder)
    _check(_libc().umount2(os.fsencode(name), flags))


def _bind(source: int, target: int, path: str, *, readonly: bool) -> None:
    libc = _libc()
    clone = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH
    tree = _check(libc.syscall(OPEN_TREE, source, b"", clone))
    if readonly:
        _set_access(tree, readonly=True)
    empty = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _check(libc.syscall(MOVE_MOUNT, tree, b"", target, b"", empty))
    link = f"/proc/self/fd/{tree}"
    if os.readlink(link) != path:
        _check(libc.umount2(os.fsencode(link), MNT_DETACH))
        raise OSError(CHANGED, "the mount point was moved")


def _set_access(target: int, *, readonly: bool) -> None:
    changes = (MOUNT_ATTR_RDONLY, 0) if readonly else (0, MOUNT_ATTR_RDONLY)  # set, clear
    attributes = struct.pack("=QQQQ", *changes, 0, 0)
    _check(_libc().syscall(MOUNT_SETATTR, target, b"", AT_EMPTY_PATH, attributes, len(attributes)))


def _libc() -> Any:
    import ctypes  # takes 4 ms, in the process of the call

    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _swapped(path: str) -> Conflict:
    return unusable(path, "was moved or replaced while the volume was mounted")
