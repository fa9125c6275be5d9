"""The users of a block device, beyond those that an exclusive open finds.

open(2) with O_EXCL is refused for a device that is mounted, or held by dm, md, LVM, bcache, swap or
LIO. These use a device without a claim: a bind mount of its node, as CSI makes one for raw block
use; a loop device; the kernel's NVMe target; an open descriptor of a process, such as a virtual
machine. Mounts are those of
the first process, since a worker may have a mount namespace of its own.

What cannot be seen is reported: a process whose descriptors may not be read, and a search that
takes too long, are not "no users".
"""

from __future__ import annotations

import os
import stat
import struct
import time

from zfsilod.host import mountinfo, processes
from zfsilod.host.attributes import read
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.storage.paths import exists, names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from zfsilod.storage.paths import AnyPath

SYS, PROC = "/sys", "/proc"
BUDGET_S = 30.0  # 100,000 descriptors take 1 s, and many times that on a busy machine
MAX_PROCESSES = 5
NODES = ("devtmpfs", "tmpfs")  # filesystems with device nodes; none of them can hang
# It keeps each path of a disk open to check it; what it makes of the disk is a holder.
IGNORED = ("multipathd",)
STATX_BYTES, RDEV_OFFSET, MODE_OFFSET = 256, 128, 28  # struct statx of linux/stat.h
STATX_TYPE, AT_FDCWD = 0x1, -100
LIBC: list[Any] = []  # opened on first use
DONT_SYNC = 0x4000  # AT_STATX_DONT_SYNC: a file of a server that is away does not hang the call


class DeviceUsers:
    """The users of a device: processes as "qemu (4711)", and why there may be more of them."""

    def __init__(self, names: tuple[str, ...] = (), unseen: str = "") -> None:
        self.names = names
        self.unseen = unseen


class BlockDevice:
    """A disk with its partitions, or a map with its paths.

    Names in /sys/class/block, and numbers such as "8:0".
    """

    def __init__(self, names: frozenset[str], numbers: frozenset[str]) -> None:
        self.names = names
        self.numbers = numbers


def described(name: str, sys: AnyPath = SYS) -> BlockDevice:
    """Return a disk with its partitions; any one without numbers when it does not exist.

    The paths of a map of dm-multipath count as the map itself: a use of a path is one of the disk.
    """
    folder = f"{os.fspath(sys)}/class/block"
    below = names(f"{folder}/{name}")
    partitions = [one for one in below if exists(f"{folder}/{name}/{one}/partition")]
    is_map = read(f"{folder}/{name}/dm/uuid").startswith("mpath-")
    paths = names(f"{folder}/{name}/slaves") if is_map else []
    whole = (name, *partitions, *paths)
    numbers = [read(f"{folder}/{one}/dev") for one in whole]
    return BlockDevice(frozenset(whole), frozenset(filter(None, numbers)))


def static_users(name: str, sys: AnyPath = SYS, proc: AnyPath = PROC) -> list[str]:
    """Return the users of a device that the kernel lists: holders, mounts, swap, loops, exports.

    None without the device.
    """
    device = described(name, sys)
    if not device.numbers:
        return []
    return [
        *_holders(device, os.fspath(sys)),
        *_mounts(device, os.fspath(proc)),
        *_swaps(device, os.fspath(proc)),
        *_loops(device, os.fspath(sys)),
        *_namespaces(device, os.fspath(sys)),
    ]


def open_descriptors(
    name: str,
    sys: AnyPath = SYS,
    proc: AnyPath = PROC,
    number_of: Callable[[str], str] | None = None,
) -> DeviceUsers:
    """Return the processes that have a device open, except this one: proc_pid_fd(5)."""
    numbers = described(name, sys).numbers
    if not numbers:
        return DeviceUsers()
    number_of = number_of or _number_of
    proc = os.fspath(proc)
    end = time.monotonic() + BUDGET_S
    seen: list[str] = []
    denied = 0
    for pid in _processes(proc):
        if time.monotonic() > end:
            return DeviceUsers(tuple(seen), f"the search took longer than {BUDGET_S:.0f} s")
        try:
            uses = any(
                number_of(path) in numbers for path in _open_files(f"{os.fspath(proc)}/{pid}")
            )
        except PermissionError:
            denied += 1
            continue
        except OSError:
            continue  # it has exited
        if not uses or len(seen) == MAX_PROCESSES:
            continue
        process = processes.name_of(f"{proc}/{pid}")
        if process not in IGNORED:
            seen.append(f"{process} ({pid})")
    unseen = f"the open files of {denied} processes may not be read" if denied else ""
    return DeviceUsers(tuple(seen), unseen)


def _processes(proc: AnyPath) -> list[int]:
    """Return the ids of the other processes, the newest first: they are the likely users."""
    ids = (int(name) for name in os.listdir(proc) if name.isdecimal())
    return sorted((pid for pid in ids if pid != os.getpid()), reverse=True)


def _open_files(process: str) -> Iterator[str]:
    """Yield the descriptors that have a path, as sockets and pipes have none."""
    folder = f"{process}/fd"
    for name in os.listdir(folder):
        try:
            link = os.readlink(f"{folder}/{name}")
        except FileNotFoundError:
            continue
        if link.startswith("/"):
            yield f"{folder}/{name}"


def _holders(device: BlockDevice, sys: str) -> list[str]:
    folders = (f"{sys}/class/block/{name}/holders" for name in device.names)
    return sorted({holder for folder in folders for holder in names(folder)} - device.names)


def _mounts(device: BlockDevice, proc: str) -> list[str]:
    first = f"{proc}/1/mountinfo"
    mounts = mountinfo.read(first if exists(first) else mountinfo.MOUNTINFO)
    nodes = {f"/{name}" for name in device.names}
    return [
        mount.path
        for mount in mounts
        if mount.number in device.numbers
        or (mount.type == "devtmpfs" and mount.root in nodes)
        or (mount.type in NODES and mount.root != "/" and _is_node(mount.path, device))
    ]


def _is_node(path: str, device: BlockDevice) -> bool:
    """Tell whether a path is a node of a device, whatever its name: one of mknod(1)."""
    try:
        return _number_of(path) in device.numbers
    except PermissionError:  # below a private folder of a user, who cannot make nodes
        return False


def _swaps(device: BlockDevice, proc: str) -> list[str]:
    lines = read(f"{proc}/swaps").splitlines()[1:]
    paths = (mountinfo.unescape(line.split()[0]) for line in lines)
    return ["swap" for path in paths if _leads_to(path, device)]


def _loops(device: BlockDevice, sys: str) -> list[str]:
    loops = (name for name in names(f"{sys}/block") if name.startswith("loop"))
    files = ((name, read(f"{sys}/block/{name}/loop/backing_file")) for name in loops)
    return [name for name, file in files if file and _leads_to(file, device)]


def _leads_to(path: str, device: BlockDevice) -> bool:
    """Tell whether a path of the kernel is a device, perhaps one that this process cannot see."""
    name = path.removesuffix(" (deleted)").removesuffix(r"\040(deleted)")
    return name.rpartition("/")[2] in device.names or _is_node(name, device)


def _number_of(path: str) -> str:
    """Return the number of a block device, as "8:0"; "" for any other file, and for none.

    Raises PermissionError when it may not be known.
    """
    status = _statx(os.fsencode(path))
    if status is None:
        return ""
    (mode,) = struct.unpack_from("=H", status, MODE_OFFSET)
    if not stat.S_ISBLK(mode):
        return ""
    return "{}:{}".format(*struct.unpack_from("=II", status, RDEV_OFFSET))


def _statx(path: bytes) -> bytes | None:
    """Return struct statx of a file as the kernel remembers it; None without the file."""
    import ctypes  # takes 4 ms, in a process that looks for users

    status = ctypes.create_string_buffer(STATX_BYTES)
    if _libc().statx(AT_FDCWD, path, DONT_SYNC, STATX_TYPE, status) == 0:
        return status.raw
    number = ctypes.get_errno()
    if number in (1, 13):
        raise PermissionError(number, os.strerror(number))
    return None


def _libc() -> Any:
    import ctypes

    if not LIBC:
        LIBC.append(ctypes.CDLL(None, use_errno=True))
    return LIBC[0]


def _namespaces(device: BlockDevice, sys: str) -> Iterator[str]:
    """Yield the subsystems of the kernel's NVMe target, which opens a device without a claim."""
    root = f"{sys}/kernel/config/nvmet/subsystems"
    for subsystem in names(root):
        for number in names(f"{root}/{subsystem}/namespaces"):
            folder = f"{root}/{subsystem}/namespaces/{number}"
            path = read(f"{folder}/device_path") if read(f"{folder}/enable") == "1" else ""
            if path and os.path.basename(os.path.realpath(path)) in device.names:
                yield f"the NVMe subsystem {subsystem}"
