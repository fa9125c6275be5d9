"""System calls that Python's standard library lacks, and readers for /proc and /sys."""

import ctypes
import fcntl
import os
import signal
import struct
from pathlib import Path
from typing import NamedTuple

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SHARED = 0x100000

MNT_DETACH = 0x2
PR_SET_PDEATHSIG = 1
LOOP_CLR_FD = 0x4C01
LOOP_GET_STATUS64 = 0x4C05
LOOP_INFO64_BYTES = 232

LOOP_MAJOR = 7

_libc = ctypes.CDLL(None, use_errno=True)


class MountedFilesystem(NamedTuple):
    """One line of /proc/PID/mountinfo."""

    device: int
    point: str
    fstype: str


def _check(result: int, call: str, subject: str) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", subject)


def mount(
    source: str, target: str | Path, *, fstype: str = "", flags: int = 0, options: str = ""
) -> None:
    """Call mount(2)."""
    names = (os.fsencode(source), os.fsencode(target), os.fsencode(fstype))
    _check(
        _libc.mount(*names, ctypes.c_ulong(flags), os.fsencode(options)),
        "mount",
        f"{source} on {target}",
    )


def bind(source: str | Path, target: str | Path, *, readonly: bool = False) -> None:
    """Bind-mount a file or a folder recursively."""
    mount(os.fspath(source), target, flags=MS_BIND | MS_REC)
    mount("none", target, flags=MS_PRIVATE | MS_REC)
    if readonly:
        mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def unmount(target: str | Path) -> None:
    """Detach a mount, even a busy one."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), "umount2", os.fspath(target))


def pivot_root(new_root: Path) -> None:
    """Make new_root the root and drop the old one."""
    os.chdir(new_root)
    _check(_libc.pivot_root(b".", b"."), "pivot_root", os.fspath(new_root))
    unmount(".")
    os.chdir("/")


def unshare(flags: int) -> None:
    """Move this process to new namespaces."""
    _check(_libc.unshare(flags), "unshare", hex(flags))


def setns(fd: int, flags: int) -> None:
    """Enter the namespace behind a descriptor."""
    _check(_libc.setns(fd, flags), "setns", hex(flags))


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl", "PR_SET_PDEATHSIG")


def mounts(pid: int | str = "self") -> list[MountedFilesystem]:
    """Read the mount table of a process."""
    entries = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        major, minor = fields[2].split(":")
        point = fields[4].encode().decode("unicode_escape")
        entries.append(
            MountedFilesystem(os.makedev(int(major), int(minor)), point, right.split()[0])
        )
    return entries


def mount_of(path: Path) -> str:
    """Name the mount point that holds a path, as `findmnt -T` does."""
    real = path.resolve()
    return max((m.point for m in mounts() if real.is_relative_to(m.point)), key=len)


def children(pid: int) -> list[int]:
    """List the children of a process; empty if it has exited."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def attached_loops() -> dict[str, int]:
    """Map each attached loop device to the device number of its backing file system."""
    devices = {}
    for entry in Path("/sys/block").glob("loop*/loop"):
        name = entry.parent.name
        status = bytearray(LOOP_INFO64_BYTES)
        try:
            _loop_ioctl(name, LOOP_GET_STATUS64, status)
        except OSError:
            continue  # Detached since it was listed.
        devices[name] = struct.unpack_from("=Q", status)[0]
    return devices


def machine_devices(pid: int) -> set[int]:
    """List the device numbers of file systems that only the machine has mounted."""
    # Files of an overlay's layers have device numbers that are in no mount table: systemd itself is
    # a file of the lower layer, machine-id one of the upper.
    layers = (Path(f"/proc/{pid}/exe"), Path(f"/proc/{pid}/root/etc/machine-id"))
    own = {mount.device for mount in mounts()}
    return {path.stat().st_dev for path in layers} | {m.device for m in mounts(pid)} - own


def detach_loop(name: str) -> None:
    """Detach a loop device; a mounted one is detached at its last close."""
    _loop_ioctl(name, LOOP_CLR_FD)


def _loop_ioctl(name: str, request: int, buffer: bytearray | None = None) -> None:
    fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, request, buffer if buffer is not None else 0)
    finally:
        os.close(fd)
