"""The processes that use a path, from /proc: for error messages, within a time limit."""

from __future__ import annotations

import os
import time

from zfsilod.host import mountinfo
from zfsilod.model.errors import show
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.storage.paths import AnyPath

PROC = "/proc"
MAX_PROCESSES = 5
BUDGET_S = 2.0


def using(path: str, proc: AnyPath = PROC) -> list[str]:
    """Return up to five processes that use a path or a path below it, as "bash (123)".

    Working directory, root and open files count: proc_pid_cwd(5), proc_pid_root(5), proc_pid_fd(5).
    After two seconds the search ends with the processes that it has.
    """
    end = time.monotonic() + BUDGET_S
    names: list[str] = []
    # The newest first: a process that keeps a mount busy usually started after the mount.
    for pid in reversed(_ids(proc)):
        if len(names) == MAX_PROCESSES or time.monotonic() > end:
            break
        used = _used_paths(f"{proc}/{pid}")
        if any(one == path or one.startswith(f"{path}/") for one in used):
            names.append(f"{name_of(f'{proc}/{pid}')} ({pid})")
    return names


def mounting(number: str, ours: dict[str, str], proc: AnyPath = PROC) -> list[str]:
    """Return processes in other mount namespaces that have a device mounted, such as containers.

    `ours`: the paths of its mounts in this namespace, with the device that each is mounted on. The
    same mount in the namespace of a service is a copy, which an unmount here removes too.
    """
    end = time.monotonic() + BUDGET_S
    seen = {_namespace(f"{proc}/self")}
    names: list[str] = []
    for pid in _ids(proc):
        if len(names) == MAX_PROCESSES or time.monotonic() > end:
            break
        process = f"{proc}/{pid}"
        namespace = _namespace(process)
        if namespace in seen:
            continue
        seen.add(namespace)
        try:
            mounts = mountinfo.read(f"{process}/mountinfo")
        except OSError:
            continue  # the process has exited
        below = {mount.id: mount.number for mount in mounts}
        kept = [mount for mount in mounts if mount.number == number]
        if any(ours.get(mount.path) != below.get(mount.parent, "") for mount in kept):
            names.append(f"{name_of(process)} ({pid})")
    return names


def _ids(proc: AnyPath) -> list[int]:
    """Return the ids of all processes, the oldest first."""
    return sorted(int(name) for name in os.listdir(proc) if name.isdecimal())


def _namespace(process: str) -> str:
    try:
        return os.readlink(f"{process}/ns/mnt")
    except OSError:
        return ""  # the process has exited, or is not ours to see


def _used_paths(process: str) -> list[str]:
    paths = []
    try:
        files = [f"fd/{name}" for name in os.listdir(f"{process}/fd")]
    except OSError:
        return []  # the process has exited
    for link in ("cwd", "root", *files):
        try:
            paths.append(os.readlink(f"{process}/{link}"))
        except OSError:
            continue  # a kernel thread, or a file that was closed
    return paths


def name_of(process: str) -> str:
    """Return the name of a process, which it has chosen itself: proc_pid_comm(5)."""
    try:
        with open(f"{process}/comm", "rb") as file:
            name = file.read().decode(errors="replace").removesuffix("\n")
    except OSError:
        name = ""
    return show(name) or "a process"
