"""Client that runs inside a machine without libraries: exports, sessions, disks, starts of Python.

guest.py python ROUNDS [ARGUMENT...]         seconds of so many starts of this Python
guest.py exported COUNT TRANSPORT            wait for so many exports; seconds since the boot
guest.py clear                               remove all iSCSI exports from configfs
guest.py connected COUNT TRANSPORT           wait for so many live sessions; seconds since the boot
guest.py disks TRANSPORT                     disks by the names of their targets
guest.py mark TRANSPORT                      write the name of each target to its disk, and sync it
guest.py marked TRANSPORT                    the number of disks that have it
guest.py served TARGET                       the settings of a target of this machine
guest.py used TARGET                         the settings of its session and disk on this machine
"""

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LIO = Path("/sys/kernel/config/target")
NVMET = Path("/sys/kernel/config/nvmet")
CLASS = Path("/sys/class")
GROUP = "iscsi/iqn.*/tpgt_1"
LIVE = {
    "iscsi": (f"{CLASS}/iscsi_session", "state", "LOGGED_IN"),
    "nvme": (f"{CLASS}/nvme", "state", "live"),
}
LOOK_S = 0.05
BLOCK = 4096
SECRET = ("password", "username", "userid", "key", "secret")


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def python(rounds: int, *arguments: str) -> list[float]:
    """Time starts of this Python."""
    argv = [sys.executable, *arguments]
    return [timed(lambda: subprocess.run(argv, check=True)) for _round in range(rounds)]


def text(path: Path) -> str:
    """Return the content of a file of sysfs or configfs; "" if it cannot be read."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def wait(is_so: Callable[[], bool]) -> float:
    """Wait for a state of the kernel, and return the seconds since the boot; the caller limits it.

    Neither configfs nor the state of a session sends events.
    """
    while not is_so():
        time.sleep(LOOK_S)
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# Exports


def exports(transport: str) -> int:
    """Return the number of volumes that a client can use, with access and portal."""
    if transport == "nvme":
        linked = {path.name for path in NVMET.glob("ports/*/subsystems/*")}
        allowed = {path.parts[-3] for path in NVMET.glob("subsystems/*/allowed_hosts/*")}
        enabled = {
            path.parts[-4]
            for path in NVMET.glob("subsystems/*/namespaces/*/enable")
            if text(path) == "1"
        }
        return len(linked & allowed & enabled)
    enabled_groups = sum(text(path) == "1" for path in LIO.glob(f"{GROUP}/enable"))
    return min(enabled_groups, len(links("acls/*/lun_0/*")))


def links(below: str) -> list[Path]:
    """Return the links below all iSCSI targets."""
    return [path for path in LIO.glob(f"{GROUP}/{below}") if path.is_symlink()]


def clear() -> str:
    """Remove all iSCSI exports, without any tool."""
    for path in LIO.glob(f"{GROUP}/enable"):
        path.write_text("0")
    for link in (*links("acls/*/lun_0/*"), *links("lun/lun_0/*")):
        link.unlink()
        link.parent.rmdir()
    for pattern in (f"{GROUP}/acls/*", f"{GROUP}/np/*", GROUP, "iscsi/iqn.*"):
        for folder in LIO.glob(pattern):
            folder.rmdir()
    for path in LIO.glob("core/iblock_*/*/enable"):
        path.parent.rmdir()
    return "cleared"


# Sessions and disks


def live(transport: str) -> int:
    """Return the number of sessions that are logged in."""
    folder, name, state = LIVE[transport]
    return sum(text(path) == state for path in Path(folder).glob(f"*/{name}"))


def disks(transport: str) -> dict[str, str]:
    """Return the disks that have appeared by the names of their targets."""
    pairs = nvme_disks() if transport == "nvme" else iscsi_disks()
    return dict(pairs)


def nvme_disks() -> Iterator[tuple[str, str]]:
    """Yield subsystems with the names of their disks; nvme0c0n1 is a path, nvme0n1 the disk."""
    for subsystem in (CLASS / "nvme-subsystem").glob("*"):
        for disk in subsystem.glob("nvme*n*"):
            if "c" not in disk.name:
                yield text(subsystem / "subsysnqn"), disk.name


def iscsi_disks() -> Iterator[tuple[str, str]]:
    """Yield targets with the names of their disks."""
    for session in (CLASS / "iscsi_session").glob("*"):
        for disk in session.glob("device/target*/*/block/*"):
            yield text(session / "targetname"), disk.name


def mark(transport: str) -> int:
    """Write the name of each target to the first block of its disk; return the number of disks."""
    marked_now = disks(transport)
    for target, disk in marked_now.items():
        descriptor = os.open(f"/dev/{disk}", os.O_RDWR)
        os.pwrite(descriptor, target.encode().ljust(BLOCK, b"\0"), 0)
        os.fsync(descriptor)
        os.close(descriptor)
    return len(marked_now)


def marked(transport: str) -> int:
    """Return the number of disks whose first block has the name of their target."""
    return sum(first_block(disk) == target for target, disk in disks(transport).items())


def first_block(disk: str) -> str:
    """Return the text in the first block of a disk, which is not taken from the page cache."""
    descriptor = os.open(f"/dev/{disk}", os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, BLOCK)  # is aligned, as O_DIRECT wants it
    os.preadv(descriptor, [buffer], 0)
    os.close(descriptor)
    return buffer[:].rstrip(b"\0").decode(errors="replace")


# Settings


def files(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yield the attributes in a folder of sysfs or configfs as NAME/ATTRIBUTE; never a secret."""
    for path in sorted(folder.glob("*")):
        if path.is_file() and not any(word in path.name for word in SECRET):
            yield f"{name}/{path.name}", text(path)


def served(target: str) -> dict[str, str]:
    """Return the settings of a target, of its device and of its client."""
    folders: dict[str, Path] = {}
    if target.startswith("nqn."):
        subsystem = NVMET / "subsystems" / target
        folders = {"subsystem": subsystem, "namespace": subsystem / "namespaces/1"}
        [folders["host"]] = subsystem.glob("allowed_hosts/*")
        [link] = NVMET.glob(f"ports/*/subsystems/{target}")
        folders["port"] = link.parents[1]
    else:
        group = LIO / "iscsi" / target / "tpgt_1"
        [backstore] = [path.resolve() for path in group.glob("lun/lun_0/*") if path.is_symlink()]
        [acl] = group.glob("acls/*")
        folders = {
            "backstore": backstore,
            "backstore/attrib": backstore / "attrib",
            "backstore/wwn": backstore / "wwn",
            "group": group,
            "group/attrib": group / "attrib",
            "group/param": group / "param",
            "acl": acl,
            "acl/attrib": acl / "attrib",
            "acl/param": acl / "param",
            "acl/lun": acl / "lun_0",
        }
        folders |= {f"portal/{path.name}": path for path in group.glob("np/*")}
    return settings(folders)


def used(target: str) -> dict[str, str]:
    """Return the settings of the session with a target, and of its disk, on this machine."""
    transport = "nvme" if target.startswith("nqn.") else "iscsi"
    disk = Path("/sys/block") / disks(transport)[target]
    folders = {"disk": disk, "disk/queue": disk / "queue", "disk/device": disk / "device"}
    if transport == "nvme":
        [controller] = [
            path.parent for path in CLASS.glob("nvme/*/subsysnqn") if text(path) == target
        ]
        [path] = controller.glob("nvme*n*")
        folders |= {"controller": controller, "path": path, "path/queue": path / "queue"}
    else:
        [session] = [
            path.parent for path in CLASS.glob("iscsi_session/*/targetname") if text(path) == target
        ]
        number = session.name.removeprefix("session")
        folders["session"] = session
        folders["connection"] = CLASS / f"iscsi_connection/connection{number}:0"
    return settings(folders)


def settings(folders: dict[str, Path]) -> dict[str, str]:
    """Return the attributes in folders."""
    return {name: value for part, folder in folders.items() for name, value in files(folder, part)}


def main(mode: str, *words: str) -> object:
    """Run one mode of the command line."""
    match mode:
        case "python":
            return python(int(words[0]), *words[1:])
        case "exported":
            return wait(lambda: exports(words[1]) >= int(words[0]))
        case "connected":
            return wait(lambda: live(words[1]) == int(words[0]))
    modes: dict[str, Callable[..., object]] = {
        "clear": clear,
        "disks": disks,
        "mark": mark,
        "marked": marked,
        "served": served,
        "used": used,
    }
    return modes[mode](*words)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
