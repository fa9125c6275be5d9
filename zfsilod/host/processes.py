"""The processes that use a path, from /proc: for error messages, within a time limit."""

from __future__ import annotations

import time
from pathlib import Path

from zfsilod.host import mountinfo
from zfsilod.model.errors import show

PROC = Path("/proc")
MAX_PROCESSES = 5
BUDGET_S = 2.0


def using(path: str, proc: Path = PROC) -> list[str]:
    """Return up to five processes that use a path or a path below it, as "bash (123)".

    Working directory, root and open files count: proc_pid_cwd(5), proc_pid_root(5), proc_pid_fd(5).
    After two seconds the search ends with the processes that it has.
    """
    end = time.monotonic() + BUDGET_S
    names: list[str] = []
    # The newest first: a process that keeps a mount busy usually started after the mount.
    for process in sorted(proc.glob("[0-9]*"), key=lambda folder: -int(folder.name)):
        if len(names) == MAX_PROCESSES or time.monotonic() > end:
            break
        if any(used == path or used.startswith(f"{path}/") for used in _used_paths(process)):
            names.append(f"{name_of(process)} ({process.name})")
    return names


def mounting(number: str, ours: dict[str, str], proc: Path = PROC) -> list[str]:
    """Return processes in other mount namespaces that have a device mounted, such as containers.

    `ours`: the paths of its mounts in this namespace, with the device that each is mounted on. The
    same mount in the namespace of a service is a copy, which an unmount here removes too.
    """
    end = time.monotonic() + BUDGET_S
    seen = {_namespace(proc / "self")}
    names: list[str] = []
    for process in sorted(proc.glob("[0-9]*"), key=lambda folder: int(folder.name)):
        if len(names) == MAX_PROCESSES or time.monotonic() > end:
            break
        namespace = _namespace(process)
        if namespace in seen:
            continue
        seen.add(namespace)
        try:
            mounts = mountinfo.read(process / "mountinfo")
        except OSError:
            continue  # the process has exited
        below = {mount.id: mount.number for mount in mounts}
        kept = [mount for mount in mounts if mount.number == number]
        if any(ours.get(mount.path) != below.get(mount.parent, "") for mount in kept):
            names.append(f"{name_of(process)} ({process.name})")
    return names


def _namespace(process: Path) -> str:
    try:
        return str((process / "ns/mnt").readlink())
    except OSError:
        return ""  # the process has exited, or is not ours to see


def _used_paths(process: Path) -> list[str]:
    paths = []
    try:
        links = [process / "cwd", process / "root", *(process / "fd").iterdir()]
    except OSError:
        return []  # the process has exited
    for link in links:
        try:
            paths.append(str(link.readlink()))
        except OSError:
            continue  # a kernel thread, or a file that was closed
    return paths


def name_of(process: Path) -> str:
    """Return the name of a process, which it has chosen itself: proc_pid_comm(5)."""
    try:
        name = (process / "comm").read_bytes().decode(errors="replace").removesuffix("\n")
    except OSError:
        name = ""
    return show(name) or "a process"
